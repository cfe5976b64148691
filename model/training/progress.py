"""What a training run says while it goes on."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

LINE_SECONDS = 60


class TrainingProgress:
    """A bar with loss, images per second and time left where there is a terminal, else a line a minute."""

    def __init__(self, quiet: bool) -> None:
        """`quiet` for all processes but one."""
        self.note = ""
        """What was measured last, for the line."""
        self._quiet = quiet
        self._console = Console(stderr=True)
        self._terminal = sys.stderr.isatty() and not quiet
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not self._terminal)
        self._task = self._bar.add_task("", total=1.0, said="")
        self._last = time.monotonic()

    def show(self, progress: float, step: int, loss: float, rate: float, left: float) -> None:
        """How far it is.

        Args:
            progress: 0 to 1.
            step: steps done.
            loss: mean of the last row of metrics.
            rate: images per second.
            left: seconds to go.
        """
        note = f"  {self.note}" if self.note else ""
        said = f"step {step}  loss {loss:.4f}{note}  {rate:.1f} images/s  {duration(left)} left"
        self._bar.update(self._task, completed=progress, said=said)
        if not self._terminal and time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            self.say(f"{progress:.0%}  {said}")

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
        """Takes the bar away."""
        self._bar.stop()


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as h:mm:ss."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
