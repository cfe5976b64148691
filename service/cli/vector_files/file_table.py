"""Which files have rows already: a table in memory that holds a digest of each name, not the name."""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import numpy as np

NONE = -1 << 63
"""Stands for None where a file has no size or no time of change."""
MAX_UNSORTED = 1 << 16
"""Files that wait in a dictionary before they are sorted into the arrays."""
KEY = np.dtype("S16")
ENTRY = np.dtype(
    [("size", "<i8"), ("modified", "<i8"), ("part", "<i4"), ("row", "<i4"), ("failed", "?"), ("named", "?")]
)


class FileEntry(NamedTuple):
    """What is known of a file's row."""

    size: int | None
    modified: int | None
    """Microseconds since 1970 (UTC)."""
    part: int
    """Number of the shard that holds the row; negative while it is in none."""
    row: int
    """Number of the row in its shard."""
    failed: bool
    named: bool = False
    """Whether this run has come to the file already."""


class FileTable:
    """Entries by file; about 50 bytes each, however long the names are.

    A file is recognised by the first 128 bits of BLAKE2b of its name. Two of a billion names share them with a
    probability of 1.5e-21.
    """

    def __init__(self) -> None:
        """An empty table."""
        self._keys = np.empty(0, KEY)
        self._entries = np.empty(0, ENTRY)
        self._unsorted: dict[bytes, FileEntry] = {}

    def find(self, file: str) -> FileEntry | None:
        """The entry of a file; None if it has none."""
        key = _digest(file)
        if (entry := self._unsorted.get(key)) is not None:
            return entry
        place = self._place(key)
        if place is None:
            return None
        size, modified, *others = self._entries[place].item()
        return FileEntry(None if size == NONE else size, None if modified == NONE else modified, *others)

    def put(self, file: str, entry: FileEntry) -> None:
        """Gives a file an entry; it replaces one that the file has."""
        self._unsorted[_digest(file)] = entry
        if len(self._unsorted) > MAX_UNSORTED:
            self._sort()

    def _place(self, key: bytes) -> int | None:
        """Where the arrays have a key."""
        sought = np.array(key, KEY)
        place = int(np.searchsorted(self._keys, sought))
        return place if place < len(self._keys) and self._keys[place] == sought else None

    def _sort(self) -> None:
        """Moves the dictionary's entries into the arrays."""
        added: list[bytes] = []
        rows: list[tuple[object, ...]] = []
        for key, entry in self._unsorted.items():
            row = (*(NONE if number is None else number for number in entry[:2]), *entry[2:])
            if (place := self._place(key)) is None:
                added.append(key)
                rows.append(row)
            else:
                self._entries[place] = row
        keys = np.concatenate([self._keys, np.array(added, KEY)])
        entries = np.concatenate([self._entries, np.array(rows, ENTRY)])
        order = np.argsort(keys, kind="stable")
        self._keys, self._entries = keys[order], entries[order]
        self._unsorted.clear()


def _digest(file: str) -> bytes:
    return blake2b(file.encode(), digest_size=16).digest()
