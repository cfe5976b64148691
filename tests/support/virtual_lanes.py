"""Lanes in virtual time: their threads run only when the test lets them, and no clock runs.

A lane runs until it waits for a batch, is in a call of the engine, or has ended. The test ends the calls, and moves the
time.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

TIMEOUT_S = 30
"""How long a thread may take to come to rest, in real seconds; only a fault reaches this."""


@dataclass(eq=False)
class _Wait:
    """A thread that waits."""

    until: float | None = None
    """The virtual time at which it wakes by itself."""
    ended: threading.Event = field(default_factory=threading.Event)
    outcome: Any = None


class VirtualLanes:
    """The time, and the threads of lanes. Times should be multiples of 1 / 64, which floats add without error."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.is_free = False
        """Whether calls of the engine end by themselves, with the outcome None."""
        self._calls: dict[int, _Wait] = {}
        self._waits: list[_Wait] = []
        self._running = 0
        self._rest = threading.Condition()

    @contextmanager
    def patch_modules(self) -> Iterator[None]:
        """The scheduler and the executor of batches use this time and these threads."""
        lanes = self

        class Thread(threading.Thread):
            def start(self) -> None:
                lanes._count(1)
                super().start()

            def run(self) -> None:
                try:
                    super().run()
                finally:
                    lanes._count(-1)

        names = SimpleNamespace(Thread=Thread, Condition=lambda: _VirtualCondition(self))
        with ExitStack() as stack:
            for module in ("batch_scheduler", "batch_results", "executor"):
                time = SimpleNamespace(monotonic=lambda: self.now)
                stack.enter_context(mock.patch(f"service.inference.{module}.time", time))
            stack.enter_context(mock.patch("service.inference.batch_scheduler.threading", names))
            yield

    def settle(self) -> None:
        """Waits until every lane is at rest."""
        with self._rest:
            assert self._rest.wait_for(lambda: not self._running, TIMEOUT_S), "a lane does not come to rest"

    @property
    def in_call(self) -> list[int]:
        """The lanes in a call of the engine."""
        return sorted(self._calls)

    @property
    def idle(self) -> int:
        """The number of lanes that wait for a batch."""
        return len(self._waits)

    def call(self, lane: int) -> Any:
        """A call of the engine: waits until the test ends it, and returns the outcome."""
        if self.is_free:
            return None
        with self._rest:
            assert lane not in self._calls, "one lane runs two batches at once"
            self._calls[lane] = wait = _Wait()
            self._count(-1)
        assert wait.ended.wait(TIMEOUT_S)
        return wait.outcome

    def end_call(self, lane: int, outcome: Any = None) -> None:
        """Ends the call that a lane is in."""
        with self._rest:
            wait = self._calls.pop(lane)
            wait.outcome = outcome
            self._wake(wait)
        self.settle()

    def advance(self, seconds: float) -> None:
        """Moves the time, and wakes each lane whose wait ends meanwhile."""
        end = self.now + seconds
        while due := [wait for wait in self._waits if wait.until is not None and wait.until <= end]:
            first = min(due, key=lambda wait: wait.until or 0.0)
            self.now = max(self.now, first.until or 0.0)
            self._waits.remove(first)
            self._wake(first)
            self.settle()
        self.now = end

    def release_all(self) -> None:
        """Ends every call, now and in future."""
        self.is_free = True
        for lane in self.in_call:
            self.end_call(lane)

    def _wake(self, wait: _Wait) -> None:
        self._count(1)
        wait.ended.set()

    def _count(self, change: int) -> None:
        with self._rest:
            self._running += change
            self._rest.notify_all()


class _VirtualCondition:
    """A `threading.Condition` whose waits end when they are notified or when virtual time has passed."""

    def __init__(self, lanes: VirtualLanes) -> None:
        self._lanes = lanes
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> None:
        wait = _Wait(None if timeout is None else self._lanes.now + timeout)
        self._lanes._waits.append(wait)
        self._lanes._count(-1)
        self._lock.release()
        try:
            assert wait.ended.wait(TIMEOUT_S)
        finally:
            self._lock.acquire()

    def notify(self, count: int = 1) -> None:
        for wait in self._lanes._waits[:count]:
            self._lanes._waits.remove(wait)
            self._lanes._wake(wait)

    def notify_all(self) -> None:
        self.notify(len(self._lanes._waits))
