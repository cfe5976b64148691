"""The memory that decodes hold: each reserves what it needs before it begins, up to MAX_DECODE_MB for all together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.inference.limits import Budget, LocalBudget

LIGHT_BYTES = 16_000_000
"""An image that needs no more never waits in line behind heavier ones; the usual photograph needs a tenth of it."""
POLL_S = 0.02
"""How often one that waits looks whether memory is free, which another process may have released."""


class MemoryShortage(MemoryError):
    """An image cannot be decoded now.

    Attributes:
        needed: bytes that it needs.
    """

    def __init__(self, needed: int) -> None:
        """For an image that needs `needed` bytes."""
        super().__init__(f"{needed} bytes are not free")
        self.needed = needed


class LongDecode(Exception):
    """An image would hold a thread that ordinary images need; it belongs to the threads for those that take long.

    Attributes:
        needed: bytes that it needs.
        work: what decoding costs, in pixels of a PNG.
    """

    def __init__(self, needed: int, work: float) -> None:
        """For an image that needs `needed` bytes and costs as much as `work` pixels of a PNG."""
        super().__init__("decoding takes long")
        self.needed = needed
        self.work = work


class Reservation:
    """Bytes that are reserved until `release`."""

    def __init__(self, memory: DecodeMemory, size: int) -> None:
        """`size` bytes of `memory`, which are reserved already."""
        self.size = size
        self._memory = memory
        self._is_held = True

    def release(self) -> None:
        """Frees the bytes, the first time that it is called."""
        if self._is_held:
            self._is_held = False
            self._memory.give(self.size)


class DecodeMemory:
    """Bytes of memory for decoding, shared by threads, and by processes if its budget is. Any thread may call it."""

    def __init__(self, budget: Budget | None = None) -> None:
        """Reserves from `budget`; by default without a limit."""
        self._budget = budget or LocalBudget()
        self._lock = threading.Lock()
        self._line = asyncio.Lock()
        self._waiting = 0

    @property
    def limit(self) -> int | None:
        """The bytes of all decodes together; None for any number."""
        return self._budget.limit

    @property
    def used(self) -> int:
        """The bytes that are reserved now."""
        return self._budget.used

    @contextmanager
    def hold(self, needed: int, reserved: int = 0) -> Iterator[None]:
        """Holds `needed` bytes while the context is open.

        Args:
            needed: bytes in all.
            reserved: bytes among them that the caller has reserved and will release.

        Raises:
            MemoryShortage: they are not free, or heavier images wait for them.
        """
        more = needed - reserved
        if more <= 0:
            yield
            return
        if (self._waiting and more > LIGHT_BYTES) or not self._take(more):
            raise MemoryShortage(needed)
        try:
            yield
        finally:
            self.give(more)

    @contextmanager
    def hold_when_free(self, needed: int) -> Iterator[None]:
        """Holds `needed` bytes while the context is open; the thread waits until they are free.

        A thread that waits must hold no other bytes.
        """
        while not self._take(needed):
            time.sleep(POLL_S)
        try:
            yield
        finally:
            self.give(needed)

    async def reserve(self, needed: int) -> Reservation:
        """Waits until `needed` bytes are free, and reserves them; heavy images wait in line."""
        if needed <= LIGHT_BYTES:
            while not self._take(needed):
                await asyncio.sleep(POLL_S)
            return Reservation(self, needed)
        self._waiting += 1
        try:
            async with self._line:
                while not self._take(needed):
                    await asyncio.sleep(POLL_S)
        finally:
            self._waiting -= 1
        return Reservation(self, needed)

    def give(self, size: int) -> None:
        """Frees `size` bytes."""
        with self._lock:
            self._budget.give(size)

    def _take(self, size: int) -> bool:
        with self._lock:
            return self._budget.take(size)
