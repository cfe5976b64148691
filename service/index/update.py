"""Images on their way into an index, stored some at a time, so that an interrupted run keeps what it has done."""

from __future__ import annotations

import time
from collections.abc import Set

from service.index.store import ImageIndex
from service.index.table import IndexRow

ROWS_AT_ONCE = 2048
"""Images that are stored at once."""
SECONDS_AT_ONCE = 20.0
"""Images are stored at the latest after so long: an interrupted run loses no more work than this."""


class IndexUpdate:
    """Collects images and stores them in an index.

    Attributes:
        added: number of images that were put and that the index did not have.
        replaced: number of images that were put in place of others with the same file.
    """

    def __init__(self, index: ImageIndex, known: Set[str]) -> None:
        """Updates `index`, which has images of the files `known`."""
        self.added = self.replaced = 0
        self._index = index
        self._known = known
        self._new: list[IndexRow] = []
        self._changed: list[IndexRow] = []
        self._stored = time.monotonic()

    def put(self, row: IndexRow) -> None:
        """Adds an image, or replaces the one with the same file; not more than once for each file.

        Raises:
            ImageIndexError: the index cannot be written.
        """
        if row.file in self._known:
            self._changed.append(row)
            self.replaced += 1
        else:
            self._new.append(row)
            self.added += 1
        is_late = time.monotonic() - self._stored > SECONDS_AT_ONCE
        if is_late or len(self._new) + len(self._changed) >= ROWS_AT_ONCE:
            self.store()

    def store(self) -> None:
        """Stores what was put since the last time.

        Raises:
            ImageIndexError: the index cannot be written.
        """
        self._index.add(self._new)
        self._index.replace(self._changed)
        self._new, self._changed = [], []
        self._stored = time.monotonic()
