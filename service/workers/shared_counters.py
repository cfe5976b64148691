"""Counters in a page of memory that all processes of the service share: some cells for each worker.

Each cell is written by one process only, so no update can be lost. A lock is needed only to reserve an amount
that has a limit, and the kernel releases the lock when its holder dies. The page has no name in any file system: it is
freed with the last process that maps it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Self

from service.inference.image_rate import ImageRate
from service.inference.limits import IMAGE, Budgets, key_budgets
from service.settings import Settings

LINE = 8
"""Number of cells in a cache line. The cells of a worker fill whole lines."""


class Column(IntEnum):
    """The amounts that the cells of a worker count. The worker writes all cells but RELEASED."""

    ADMITTED = 0
    """Images that the worker has admitted, without those whose request ended before they were sent; in the units of
    `service.inference.limits.IMAGE`."""
    RELEASED = 1
    """Images among them that have left the queue, for a batch or dropped, in the same units. The engine process writes
    this cell."""
    BYTES = 2
    """Bytes of request bodies that the worker holds."""
    REQUESTS = 3
    """Requests for inference that the worker has begun and not answered."""
    CONNECTIONS = 4
    """Connections that the worker has open."""
    ACCEPTING = 5
    """1 while the worker accepts connections."""
    DECODES = 6
    """Bytes of memory that the worker's decodes hold."""
    CACHE = 7
    """Bytes of results that the worker has cached."""


class SharedCounters:
    """The page of counters: for each worker the columns of `Column` and one for each API key, then a cell per key."""

    def __init__(self, fd: int, workers: int, keys: int = 0) -> None:
        """Maps the memory of `fd`, and takes ownership of `fd`; `keys` is the number of API keys."""
        self.fd = fd
        self.workers = workers
        self._columns = _columns(keys)
        self._lock = threading.Lock()
        page = mmap.mmap(fd, _size(workers, keys))
        self._cells = memoryview(page).cast("q")  # a store of 8 bytes is atomic

    @classmethod
    def create(cls, workers: int, keys: int = 0) -> Self:
        """A new page, all zeros."""
        fd = os.memfd_create("mae-counters")
        os.ftruncate(fd, _size(workers, keys))
        return cls(fd, workers, keys)

    def get(self, worker_index: int, column: int) -> int:
        """The value of a cell."""
        return self._cells[worker_index * self._columns + column]

    def set(self, worker_index: int, column: int, value: int) -> None:
        """Writes a cell. Only the one process that writes the cell may call this."""
        self._cells[worker_index * self._columns + column] = value

    def add(self, worker_index: int, column: int, amount: int) -> None:
        """Adds to a cell. Only the one process that writes the cell may call this."""
        self._cells[worker_index * self._columns + column] += amount

    def total(self, column: int) -> int:
        """The sum over all workers."""
        return sum(self._cells[worker_index * self._columns + column] for worker_index in range(self.workers))

    def clear(self, worker_index: int) -> None:
        """Sets the cells of a dead worker to zero."""
        for column in range(self._columns):
            self.set(worker_index, column, 0)

    def get_time(self, key_index: int) -> int:
        """The time that is kept for a key, in nanoseconds."""
        return self._cells[self.workers * self._columns + key_index]

    def set_time(self, key_index: int, time_ns: int) -> None:
        """Keeps a time for a key. Every process may call this while it holds the lock."""
        self._cells[self.workers * self._columns + key_index] = time_ns

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock of the page, for the microseconds that it takes to check a limit and to add."""
        with self._lock:  # the lock of the page is the process's, so threads need one of their own
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Unmaps the page and closes its file descriptor."""
        self._cells.release()
        os.close(self.fd)


def _columns(keys: int) -> int:
    """Number of cells of a worker."""
    return -(-(len(Column) + keys) // LINE) * LINE


def _size(workers: int, keys: int) -> int:
    """Bytes of the page."""
    return 8 * (workers * _columns(keys) + keys)


class SharedBudget:
    """A `Budget` of the whole service, used by one worker: the limit holds for the sum over all workers."""

    def __init__(
        self,
        counters: SharedCounters,
        worker_index: int,
        column: int,
        limit: int | None = None,
        released: Column | None = None,
    ) -> None:
        """Counts in `column` of `worker_index`.

        Args:
            counters: the page.
            worker_index: the worker that uses the budget.
            column: counts the amount that was reserved.
            limit: the bound; None for an amount that is only counted.
            released: counts the amount that another process has released.
        """
        self.limit = limit
        self._counters = counters
        self._worker_index = worker_index
        self._column = column
        self._released = released

    @property
    def used(self) -> int:
        """The amount that all workers have reserved and not released."""
        # The released amount is read first: an image that comes and goes in between must not make the difference too
        # small.
        released = 0 if self._released is None else self._counters.total(self._released)
        return self._counters.total(self._column) - released

    def take(self, amount: int) -> bool:
        """Reserves `amount`, unless the whole service has less than that left."""
        if self.limit is None:
            self._counters.add(self._worker_index, self._column, amount)
            return True
        with self._counters.locked():
            if self.used + amount > self.limit:
                return False
            self._counters.add(self._worker_index, self._column, amount)
        return True

    def give(self, amount: int) -> None:
        """Releases `amount`."""
        self._counters.add(self._worker_index, self._column, -amount)


class SharedImageRate(ImageRate):
    """The `ImageRate` of one key over all workers."""

    def __init__(self, counters: SharedCounters, key_index: int, per_s: float, burst: int) -> None:
        """Keeps its time in the page, in the cell of the key."""
        super().__init__(per_s, burst)
        self._counters = counters
        self._key_index = key_index

    def take(self, count: int) -> int:
        """See `ImageRate.take`."""
        with self._counters.locked():
            return super().take(count)

    def _get_time(self) -> int:
        return self._counters.get_time(self._key_index)

    def _set_time(self, time_ns: int) -> None:
        self._counters.set_time(self._key_index, time_ns)


def shared_budgets(settings: Settings, counters: SharedCounters, worker_index: int) -> Budgets:
    """The budgets of the whole service, as one worker uses them."""
    return Budgets(
        bodies=SharedBudget(counters, worker_index, Column.BYTES, settings.max_inflight_bytes),
        requests=SharedBudget(counters, worker_index, Column.REQUESTS),
        images=SharedBudget(counters, worker_index, Column.ADMITTED, settings.queue_images * IMAGE, Column.RELEASED),
        decodes=SharedBudget(counters, worker_index, Column.DECODES, settings.max_decode_bytes),
        cache=SharedBudget(counters, worker_index, Column.CACHE),
        keys=key_budgets(
            settings,
            lambda index, limit: SharedBudget(counters, worker_index, len(Column) + index, limit),
            lambda index, per_s, burst: SharedImageRate(counters, index, per_s, burst),
        ),
    )
