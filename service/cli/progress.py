"""What a long command says on standard error."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Report:
    """A progress bar, where there is a terminal to see it, and lines that pass it by; use as a context manager."""

    def __init__(self, total: int, there: int = 0, doing: str = "embedding") -> None:
        """Of `total` images, `there` are done already; `doing` says what happens to them."""
        self.done = 0
        self.skipped = 0
        self._console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeRemainingColumn(),
        )
        # Not the console's own idea of a terminal, which environment variables can change.
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not sys.stderr.isatty())
        self._task = self._bar.add_task(doing, total=total, completed=there)

    def stage(self, doing: str) -> None:
        """Says what happens from now on: in front of the bar, or in a line of its own where there is none."""
        self._bar.update(self._task, description=doing)
        if self._bar.disable:
            self.say(doing)

    def advance(self) -> None:
        """One more is done."""
        self.done += 1
        self._bar.advance(self._task)

    def skip(self, reason: str) -> None:
        """One more cannot be done."""
        self.skipped += 1
        self._bar.advance(self._task)
        self.say(reason)

    def say(self, sentence: str) -> None:
        """Writes one line."""
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


class RateColumn(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        """Over the last half minute."""
        return Text(f"{task.finished_speed or task.speed or 0:.1f} images/s", style="progress.data.speed")
