"""The progress of a training run on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

LINE_SECONDS = 60


class TrainingProgress:
    """A bar with loss, images per second and time left on a terminal; elsewhere one line per minute."""

    def __init__(self, quiet: bool) -> None:
        """Shows nothing if `quiet`, as all processes but one should be."""
        self.measurement = ""
        """The latest measurement, shown beside the loss."""
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._terminal = sys.stderr.isatty() and not quiet
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._terminal)
        self._task = self._bar.add_task("", total=1.0, status="")
        self._last_line = time.monotonic()

    def show(self, done: float, step: int, loss: float, rate: float, seconds_left: float) -> None:
        """Shows how far the run is.

        Args:
            done: the part of the schedule that is done, 0 to 1.
            step: steps that are done.
            loss: mean loss since the last call.
            rate: images per second.
            seconds_left: time to the end of the schedule.
        """
        measurement = f"  {self.measurement}" if self.measurement else ""
        status = f"step {step}  loss {loss:.4f}{measurement}  {rate:.1f} images/s  {format_duration(seconds_left)} left"
        self._bar.update(self._task, completed=done, status=status)
        if not self._terminal and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self.say(f"{done:.0%}  {status}")

    def say(self, sentence: str) -> None:
        """Writes one line."""
        if not self._quiet:
            self._console.print(f"mae: {sentence}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the bar."""
        self._bar.stop()


def format_duration(seconds: float) -> str:
    """Hours, minutes and seconds, as h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
