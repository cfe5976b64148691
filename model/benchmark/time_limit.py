"""A limit of time for work that cannot be interrupted by asking: a compiler works for minutes without a break."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TimeOver(BaseException):
    """The time is over. Not an Exception: a compiler that catches those would go on."""


@contextmanager
def limit_time(seconds: float | None) -> Iterator[None]:
    """Raises TimeOver inside the context once `seconds` are over; None is no limit.

    It uses the signal SIGALRM: only a process's main thread can limit its time.
    """
    if seconds is None:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeOver

    previous = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
