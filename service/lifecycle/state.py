"""The state of the service, for probes, for requests, and for the process that ends with it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

log = logging.getLogger(__name__)
State = Literal["loading", "ready", "draining", "lost"]


class ServiceState:
    """The state of the service, the reason for it, and the exit code once the process should end."""

    def __init__(self) -> None:
        """The service is loading."""
        self.current: State = "loading"
        self.progress = "starting"
        """The step of loading that runs, or the reason why the engine is lost."""
        self.exit_code: int | None = None
        """None as long as the process should go on."""
        self._listeners: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Calls `listener` after every change, in the thread that makes the change."""
        self._listeners.append(listener)

    def change(self, state: State, progress: str | None = None) -> None:
        """Sets the state, and the progress unless it is None."""
        self.current = state
        self.progress = self.progress if progress is None else progress
        self._notify()

    def report(self, progress: str) -> None:
        """Logs a step of loading and shows it to probes. Any thread may call this."""
        log.info(progress)
        self.change(self.current, progress)

    def exit(self, code: int) -> None:
        """Asks the process to end with `code`. A failure is never replaced by a later code of 0."""
        self.exit_code = max(code, self.exit_code or 0)
        self._notify()

    def fail(self, reason: str) -> None:
        """Logs the reason, tells it to probes and asks the process to end with code 1."""
        log.critical(reason)
        self.change("lost", reason)
        self.exit(1)

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()
