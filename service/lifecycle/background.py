"""Tasks of the event loop that run beside the requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

log = logging.getLogger(__name__)


class BackgroundTasks:
    """Keeps tasks alive until they are done. A task that fails is logged and reported, so none ends unnoticed."""

    def __init__(self, on_failure: Callable[[str], None]) -> None:
        """Calls `on_failure` with the reason when a task has raised."""
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Runs `work` on the running event loop."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def cancel(self) -> None:
        """Cancels the tasks that still run."""
        for task in self._tasks:
            task.cancel()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.critical("a background task has failed", exc_info=error)
            self._on_failure(f"a background task has failed: {error}")
