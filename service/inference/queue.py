"""A request's place in the queue, and the images that wait in it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from model.arrays import Bytes, Indices
from service.errors import ServiceError
from service.inference.executor import Operation, Row


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """One image in the queue."""

    ticket: QueuedRequest
    index: int
    patches: Bytes
    visible_indices: Indices
    since: float


class BatchKey(NamedTuple):
    """What can share a batch."""

    operation: Operation
    most: int
    """Visible patches of an image: just as many, or at most, where the engine mixes."""


@dataclass
class Timing:
    """Seconds that the slowest image of a request spent waiting, and in its batch."""

    queue: float = 0.0
    infer: float = 0.0


class Keeper(Protocol):
    """Whoever keeps the queue that a ticket is for."""

    def put(self, item: QueueEntry) -> None:
        """Queues an image."""

    def give_up(self, ticket: QueuedRequest) -> None:
        """Forgets a ticket."""


class QueuedRequest:
    """A request's place in the queue, for as many images as it has; use as a context manager, which gives it up."""

    def __init__(self, keeper: Keeper, operation: Operation, count: int, deadline: float) -> None:
        """Made by `admit`."""
        self.operation = operation
        self.deadline = deadline
        self.timing = Timing()
        self.items: deque[QueueEntry] = deque()
        self.group: BatchKey | None = None
        self.stamp = 0.0
        self.untaken = count
        self.over = False
        self._keeper = keeper
        self._rows: list[Row] = [None] * count
        self._missing = count
        self._future: asyncio.Future[list[Row]] = asyncio.get_running_loop().create_future()

    def put(self, index: int, patches: Bytes, visible_indices: Indices) -> None:
        """Queues the image `index`, uint8 [K, P] (all N for reconstruct), int32 [K]: one K for the whole ticket.

        Raises:
            EngineLost: the engine is beyond help.
        """
        self._keeper.put(QueueEntry(self, index, patches, visible_indices, time.monotonic()))

    async def rows(self) -> list[Row]:
        """The images' results in order. Waits for good where the deadline has passed: who set it keeps it.

        Raises:
            InferenceFailed: the engine failed on one of them.
            EngineLost: the engine is beyond help.
        """
        return await self._future

    def settle(self, index: int, row: Row | ServiceError) -> None:
        """Takes in one image's result; the first failure is the request's. On the event loop."""
        if self._future.done():
            return
        if isinstance(row, ServiceError):
            self.fail(row)
            return
        self._rows[index] = row
        self._missing -= 1
        if not self._missing:
            self._future.set_result(self._rows)

    def fail(self, error: ServiceError) -> None:
        """Answers the whole request with `error`, unless it is answered. On the event loop."""
        if not self._future.done():
            self._future.set_exception(error)

    def take(self) -> QueueEntry:
        """The next image, for a batch. Under the queue's lock."""
        self.untaken -= 1
        return self.items.popleft()

    def drop(self) -> None:
        """Whatever waits will not be taken. Under the queue's lock."""
        self.items.clear()

    def __enter__(self) -> Self:
        """Nothing to do: the place was taken by `admit`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Gives back what is left of the place; nothing of this request enters a batch any more."""
        self._keeper.give_up(self)
        if not self._future.cancel() and not self._future.cancelled():
            self._future.exception()  # seen, if nobody asked for it


TicketKind = Callable[[Keeper, Operation, int, float], QueuedRequest]
