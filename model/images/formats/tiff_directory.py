"""The first directory of a TIFF: its tags, without Pillow.

Sources: TIFF 6.0, sections 2 and 8; the BigTIFF design (libtiff.gitlab.io/libtiff/specification/bigtiff.html).
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import NamedTuple

from model.images.errors import ImageError
from model.images.formats.base import MAX_PARTS

FORMATS_OF_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
"""The integer types, for `struct`."""
BYTES, ASCII, UNDEFINED = 1, 2, 7


class Entry(NamedTuple):
    """A tag of the directory."""

    kind: int
    length: int
    position: int
    """Where its values are in the file."""


class Directory:
    """The tags of one image.

    Attributes:
        order: the byte order, for `struct`: `<` or `>`.
        is_big: whether the file is a BigTIFF, with offsets of eight bytes.
    """

    def __init__(self, data: bytes, offset: int | None = None) -> None:
        """Reads the directory at `offset`, by default the first one.

        Raises:
            ImageError: the directory is damaged.
        """
        self._data = data
        self.order = "<" if data[:2] == b"II" else ">"
        self.is_big = struct.unpack_from(self.order + "H", data, 2)[0] == 43
        self._entries: dict[int, Entry] = {}
        self._raw_entries: dict[int, bytes] = {}
        count_format, entry_format, offset_format = ("Q", "HHQ", "Q") if self.is_big else ("H", "HHI", "I")
        entry_size, value_size = (20, 8) if self.is_big else (12, 4)
        try:
            if offset is None:
                (offset,) = struct.unpack_from(self.order + offset_format, data, 8 if self.is_big else 4)
            (count,) = struct.unpack_from(self.order + count_format, data, offset)
            first = offset + struct.calcsize(count_format)
            for position in range(first, first + entry_size * min(count, MAX_PARTS), entry_size):
                tag, kind, values = struct.unpack_from(self.order + entry_format, data, position)
                value = position + entry_size - value_size
                size = struct.calcsize(FORMATS_OF_TYPES.get(kind, "B")) * values
                if size > value_size:
                    (value,) = struct.unpack_from(self.order + offset_format, data, value)
                self._entries.setdefault(tag, Entry(kind, values, value))
                self._raw_entries.setdefault(tag, data[position : position + entry_size])
        except struct.error:
            raise ImageError("its directory is damaged or cut short") from None

    def __contains__(self, tag: int) -> bool:
        """Whether the directory has a tag."""
        return tag in self._entries

    def file_with(self, tags: Collection[int]) -> bytes:
        """The file with this directory alone, and in it only `tags`, as far as they are there."""
        raw = [entry for tag, entry in sorted(self._raw_entries.items()) if tag in tags]
        count_format, offset_format, place = ("Q", "Q", 8) if self.is_big else ("H", "I", 4)
        padding = bytes(len(self._data) % 2)
        offset = struct.pack(self.order + offset_format, len(self._data) + len(padding))
        directory = struct.pack(self.order + count_format, len(raw)) + b"".join(raw) + bytes(len(offset))
        return self._data[:place] + offset + self._data[place + len(offset) :] + padding + directory

    def count(self, tag: int) -> int:
        """Number of a tag's values; 0 if there is no such tag."""
        entry = self._entries.get(tag)
        return entry.length if entry else 0

    def integers(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The values of a tag of integers.

        Raises:
            ImageError: they are no integers, too many, or outside the file.
        """
        entry = self._entries.get(tag)
        if entry is None or not entry.length:
            return default
        letter = FORMATS_OF_TYPES.get(entry.kind)
        if letter is None or entry.length > MAX_PARTS:
            raise ImageError(f"its tag {tag} is damaged")
        try:
            return struct.unpack_from(f"{self.order}{entry.length}{letter}", self._data, entry.position)
        except struct.error:
            raise ImageError(f"its tag {tag} is damaged") from None

    def integer(self, tag: int, default: int) -> int:
        """The first value of a tag of integers.

        Raises:
            ImageError: as `integers`.
        """
        return self.integers(tag, (default,))[0]

    def optional_integer(self, tag: int, kinds: tuple[int, ...]) -> int:
        """The first value of a tag of one of these types; 0 if there is none, or if it is damaged."""
        entry = self._entries.get(tag)
        if entry is None or entry.kind not in kinds:
            return 0
        try:
            return self.integer(tag, 0)
        except ImageError:
            return 0

    def bytes_of(self, tag: int) -> bytes:
        """The values of a tag of bytes; empty if there is none."""
        entry = self._entries.get(tag)
        if entry is None or entry.kind not in (BYTES, ASCII, UNDEFINED):
            return b""
        return self._data[entry.position : entry.position + entry.length]


def grey_file(data: bytes, order: str, tags: dict[int, tuple[int, ...]]) -> bytes:
    """A TIFF with the content of another one and a directory of its own.

    Args:
        data: the file, whose header is replaced and to which the directory is added.
        order: the byte order of the directory: `<` or `>`.
        tags: the values of each tag, in 32 bits.
    """
    start = len(data) + len(data) % 2
    entries, arrays = b"", b""
    arrays_start = start + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            packed, arrays = struct.pack(order + "I", arrays_start + len(arrays)), arrays + packed
        entries += struct.pack(order + "HHI", tag, 4, len(values)) + packed
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    directory = struct.pack(order + "H", len(tags)) + entries + bytes(4) + arrays
    return head + data[8:] + bytes(len(data) % 2) + directory
