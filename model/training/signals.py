"""Signals that end a run after its state is saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """A signal ended the run, after its state was saved.

    Attributes:
        number: the signal's number.
    """

    def __init__(self, number: int, done: str) -> None:
        """Signal `number` came after the work that `done` names, as in `12 steps`."""
        super().__init__(f"ended by {signal.Signals(number).name} after {done}: --resume goes on from there")
        self.number = number


class FirstSignal:
    """The first signal that came.

    Attributes:
        number: its number; 0 until one comes.
    """

    number = 0


@contextmanager
def catch_signals() -> Iterator[FirstSignal]:
    """Remembers the first signal, by which a loop ends after its step; the second one ends it at once."""
    first = FirstSignal()

    def remember(number: int, frame: FrameType | None) -> None:
        if first.number:
            raise KeyboardInterrupt
        first.number = number

    handlers = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield first
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
