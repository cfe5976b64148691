"""The progress of a training run on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

FIRST_LINE_SECONDS, LINE_SECONDS = 5, 60


class TrainingProgress:
    """A bar on a terminal; elsewhere a line after five seconds, then one per minute."""

    def __init__(self, quiet: bool) -> None:
        """Shows nothing if `quiet`, as all processes but one should be."""
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
        self._task = self._bar.add_task("", total=1.0, status="starting")
        self._next_line = time.monotonic() + FIRST_LINE_SECONDS

    def show(self, done: float, status: str) -> None:
        """Shows how far the run is; call it at every step.

        Args:
            done: the part of the run that is done, 0 to 1.
            status: the step and its figures in a few words.
        """
        self._bar.update(self._task, completed=done, status=status)
        if not self._terminal and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_SECONDS
            self.say(f"{done:.0%}  {status}")

    def say(self, sentence: str) -> None:
        """Writes one line, above the bar."""
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
