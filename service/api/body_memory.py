"""The memory for the bodies of requests: where it is full, a body that hardly grows any more makes room for others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import Message, Receive

from service.errors import MemoryFull
from service.inference.limits import Budget

GROWTH = 1 / 16
"""A body is slow if it has not grown by this part within `SLOW_S`. It is no number of bytes, because a client that has
sent much could otherwise keep the memory by sending a few bytes."""
SLOW_S = 1.0
"""See `GROWTH`, in seconds."""


class BodyMemory:
    """The bodies that a process receives, within the memory for those of all processes."""

    def __init__(self, budget: Budget, want_memory: Callable[[], object] = lambda: None) -> None:
        """Holds no body yet.

        Args:
            budget: counts the bytes of all bodies.
            want_memory: called where the memory is full, and no body of this process is slow.
        """
        self._budget = budget
        self._want_memory = want_memory
        self.waiting: dict[ReceivedBody, None] = {}
        """The bodies that hold bytes and wait for more."""
        self.leaving: dict[ReceivedBody, None] = {}
        """The bodies that were told to give their bytes back, and have not done so yet."""

    def open(self) -> ReceivedBody:
        """A body of which nothing has arrived."""
        return ReceivedBody(self, self._budget)

    async def take(self, size: int) -> None:
        """Counts `size` bytes, for which slow bodies make room if they must, the largest first.

        Raises:
            MemoryFull: the memory is full, and not of slow bodies of this process. Those of other
                processes make room soon.
        """
        while not self._budget.take(size):
            if not self.make_room():
                self._want_memory()
                raise MemoryFull(
                    "too many bytes of request bodies are being received at once (MAX_INFLIGHT_MB)",
                    limit=self._budget.limit,
                )
            await next(iter(self.leaving)).released.wait()

    def make_room(self) -> bool:
        """Tells the largest slow body to make room, unless one does already; returns whether one does."""
        slow = [body for body in self.waiting if body.is_slow]
        if slow and not self.leaving:
            max(slow, key=lambda body: body.size).make_room()
        return bool(self.leaving)


class ReceivedBody:
    """What has arrived of one body."""

    def __init__(self, memory: BodyMemory, budget: Budget) -> None:
        """Holds nothing yet."""
        self.size = 0
        """Bytes that are counted."""
        self.released = asyncio.Event()
        self._memory = memory
        self._budget = budget
        self._timeout = asyncio.timeout(None)
        self._marked_size = 0
        self._marked_at = 0.0

    @property
    def is_slow(self) -> bool:
        """Whether it has not grown by `GROWTH` for `SLOW_S`."""
        return time.monotonic() - self._marked_at > SLOW_S

    async def receive(self, receive: Receive) -> Message:
        """Waits for the next message of the request.

        Raises:
            MemoryFull: the body has made room for others meanwhile.
        """
        if not self.size:
            return await receive()
        self._memory.waiting[self] = None
        try:
            async with asyncio.timeout(None) as self._timeout:
                message = await receive()
        except TimeoutError:
            if self not in self._memory.leaving:
                raise
        finally:
            self._memory.waiting.pop(self, None)
        if self in self._memory.leaving:
            self.release()
            raise MemoryFull(
                "this body arrives slowly, and others need its memory (MAX_INFLIGHT_MB)", limit=self._budget.limit
            )
        return message

    async def add(self, size: int) -> None:
        """Counts a piece that has arrived.

        Raises:
            MemoryFull: there is no room for it.
        """
        await self._memory.take(size)
        self.size += size
        if self.size > (1 + GROWTH) * self._marked_size:
            self._marked_size, self._marked_at = self.size, time.monotonic()

    def make_room(self) -> None:
        """Ends the wait for the next piece, so that the bytes are given back soon."""
        self.released.clear()  # a body may be read on after its answer has begun
        del self._memory.waiting[self]
        self._memory.leaving[self] = None
        self._timeout.reschedule(asyncio.get_running_loop().time())

    def release(self) -> None:
        """Gives the bytes back."""
        self._budget.give(self.size)
        self.size = 0
        self._memory.leaving.pop(self, None)
        self.released.set()
