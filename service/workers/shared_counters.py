"""Counters that all processes of the service see: one row a worker, one page of shared memory.

Each cell has one process that writes it, so no update can be lost. Only what has a bound is taken under a lock, which
the kernel takes away from a process that dies with it. The page has no name in any file system: it is gone with the
last process that holds it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Self

CELLS = 8
"""A row fills a cache line."""


class Column(IntEnum):
    """What is counted."""

    ADMITTED = 0
    """Images that were let in, by the worker."""
    LEFT = 1
    """Of those, images that are in a batch or were given up, by the device process."""
    BYTES = 2
    """Of request bodies."""
    REQUESTS = 3
    """For inference, begun and not answered."""
    CONNECTIONS = 4
    """That are open."""
    ACCEPTING = 5
    """1 while the worker takes connections."""


class SharedCounters:
    """The page."""

    def __init__(self, fd: int, rows: int) -> None:
        """Over the memory that `fd` stands for; `fd` stays the caller's business no more."""
        self.fd = fd
        self.rows = rows
        self._cells = memoryview(mmap.mmap(fd, rows * CELLS * 8)).cast("q")  # a store of 8 bytes is never seen halved

    @classmethod
    def create(cls, rows: int) -> Self:
        """A new one, all zeros."""
        fd = os.memfd_create("mae-ledger")
        os.ftruncate(fd, rows * CELLS * 8)
        return cls(fd, rows)

    def get(self, row: int, column: Column) -> int:
        """One cell."""
        return self._cells[row * CELLS + column]

    def set(self, row: int, column: Column, value: int) -> None:
        """Writes a cell; for its one writer."""
        self._cells[row * CELLS + column] = value

    def add(self, row: int, column: Column, amount: int) -> None:
        """Adds to a cell; for its one writer."""
        self._cells[row * CELLS + column] += amount

    def total(self, column: Column) -> int:
        """Of all rows."""
        return sum(self._cells[row * CELLS + column] for row in range(self.rows))

    def clear(self, row: int) -> None:
        """Forgets a worker that is dead."""
        for column in Column:
            self.set(row, column, 0)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds off whoever else is about to take something that has a bound: for microseconds."""
        fcntl.lockf(self.fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Lets the page go."""
        self._cells.release()
        os.close(self.fd)


class SharedBudget:
    """One of the service's budgets, as the worker of `row` sees it; the sum of all workers is what has a bound."""

    def __init__(
        self, ledger: SharedCounters, row: int, column: Column, limit: int | None = None, less: Column | None = None
    ) -> None:
        """Counts in `column`; what is in `less` is not used any more."""
        self.limit = limit
        self._ledger = ledger
        self._row = row
        self._column = column
        self._less = less

    @property
    def used(self) -> int:
        """By all workers."""
        # What left comes first: an image that comes and goes in between must not make the sum too small.
        left = 0 if self._less is None else self._ledger.total(self._less)
        return self._ledger.total(self._column) - left

    def take(self, amount: int) -> bool:
        """Takes `amount` if the whole service has it left."""
        if self.limit is None:
            self._ledger.add(self._row, self._column, amount)
            return True
        with self._ledger.locked():
            if self.used + amount > self.limit:
                return False
            self._ledger.add(self._row, self._column, amount)
        return True

    def give(self, amount: int) -> None:
        """Gives `amount` back."""
        self._ledger.add(self._row, self._column, -amount)
