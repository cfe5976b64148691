"""The progress bar of commands that work on many images."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class ProgressBar:
    """A progress bar on a terminal, and lines of text beside it on standard error; use it as a context manager.

    Where standard error is no terminal, the lines alone are written.
    """

    def __init__(self, total: int | None, stage: str = "embedding") -> None:
        """For `total` images, or None if their number is not known; `stage` names the work."""
        self.done = 0
        """Number of images that were processed since the start."""
        self.skipped = 0
        """Number of images that could not be processed."""
        self._console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            RateColumn(),
            TimeRemainingColumn(),
        )
        # Environment variables would affect rich's own test for a terminal.
        self._bar = Progress(
            *columns,
            console=self._console,
            transient=True,
            disable=not sys.stderr.isatty(),
            redirect_stdout=sys.stdout.isatty(),  # else results for a file or a pipe would go to the terminal
        )
        self._task = self._bar.add_task(stage, total=total)

    def stage(self, name: str) -> None:
        """Names the work that begins now: before the bar, or in a line of its own where there is no bar."""
        self._bar.update(self._task, description=name)
        if self._bar.disable:
            self.write_line(name)

    def advance(self) -> None:
        """Counts an image that was processed."""
        self.done += 1
        self._bar.advance(self._task)

    def pass_over(self, count: int) -> None:
        """Counts images that need no work."""
        self._bar.advance(self._task, count)

    def skip(self, reason: str) -> None:
        """Counts an image that could not be processed, and writes the reason."""
        self.skipped += 1
        self._bar.advance(self._task)
        self.write_line(reason)

    def write_line(self, sentence: str) -> None:
        """Writes one line to standard error, above the bar."""
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


class RateColumn(ProgressColumn):
    """A column with the images per second."""

    def render(self, task: Task) -> Text:
        """The mean rate of the last half minute."""
        return Text(f"{task.finished_speed or task.speed or 0:.1f} images/s", style="progress.data.speed")
