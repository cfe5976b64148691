"""What the fuzzing child has done, in a file that outlives it: counts, and the input that it is working on."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

CURRENT, FINDINGS = "current", "findings"
MAX_INPUT = 1 << 20
COUNTS = ("inputs", "accepted", "refused", "findings", "slowest_us", "peak_kb", "length")
LAYOUT = struct.Struct(f"<{len(COUNTS)}Q")


class Record:
    """The counts and the current input; parent and child map the same file."""

    def __init__(self, folder: Path) -> None:
        with (folder / CURRENT).open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), LAYOUT.size + MAX_INPUT)

    @classmethod
    def create(cls, folder: Path) -> Record:
        (folder / CURRENT).write_bytes(bytes(LAYOUT.size + MAX_INPUT))
        return cls(folder)

    def __getattr__(self, name: str) -> int:
        if name not in COUNTS:
            raise AttributeError(name)
        return int(LAYOUT.unpack_from(self._map)[COUNTS.index(name)])

    @property
    def current(self) -> bytes:
        """The input that is being read, or was read last."""
        return bytes(self._map[LAYOUT.size : LAYOUT.size + self.length])

    def begin(self, data: bytes) -> None:
        self._map[LAYOUT.size : LAYOUT.size + len(data)] = data
        self.add(inputs=1, length=len(data) - self.length)

    def add(self, **counts: int) -> None:
        values = list(LAYOUT.unpack_from(self._map))
        for name, count in counts.items():
            values[COUNTS.index(name)] += count
        LAYOUT.pack_into(self._map, 0, *values)

    def raise_to(self, **peaks: int) -> None:
        """Notes figures of which the largest is kept."""
        self.add(**{name: max(0, value - getattr(self, name)) for name, value in peaks.items()})
