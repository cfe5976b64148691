"""What a run has done so far, in a file that only grows: it survives the end of the process at any moment."""

from __future__ import annotations

import fcntl
import math
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from service.cli.vector_files.space import Row, VectorFileError, VectorSpace

# Of a record: bytes of what follows, its CRC-32, bytes of the path. Then the path and the vector.
HEAD = struct.Struct("<III")
SYNC_S = 5.0


class Header(BaseModel):
    """The first line of a journal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    space: VectorSpace
    replaces: bool
    """Whether the run is to replace an existing output rather than to add to it."""


class Journal:
    """Appends rows, and reads them back. A record that was cut short by the end of a process is dropped.

    What was appended outlives the process at once, and the machine after `SYNC_S` seconds. The file is locked, so that
    two runs cannot write the same output.
    """

    def __init__(self, path: Path) -> None:
        """Opens the journal at `path`, or begins one.

        Raises:
            VectorFileError: another run has it open, or it is none.
        """
        self.path = path
        self.header: Header | None = None
        """None as long as `begin` is to be called."""
        self.paths: list[str] = []
        self._file: BinaryIO = path.open("a+b")
        self._synced = time.monotonic()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released with the file, also when killed
            self._recover()
        except BlockingIOError:
            self._file.close()
            raise VectorFileError(f"another run is writing {path.parent}") from None
        except BaseException:
            self._file.close()
            raise

    def begin(self, header: Header) -> None:
        """Throws away what there is and starts anew."""
        self._file.truncate(0)
        self._file.write(header.model_dump_json().encode() + b"\n")
        self._file.flush()
        self.header, self.paths = header, []

    def append(self, row: Row) -> None:
        """Adds a row."""
        name = row.path.encode()
        body = name + row.vector.astype("<f4").tobytes()
        self._file.write(HEAD.pack(len(body), zlib.crc32(body), len(name)) + body)
        self._file.flush()
        self.paths.append(row.path)
        if time.monotonic() - self._synced > SYNC_S:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def rows(self) -> Iterator[Row]:
        """All rows, in the order in which they were appended."""
        assert self.header is not None
        with self.path.open("rb") as file:
            file.readline()
            yield from _records(file, self.header.space)

    def __enter__(self) -> Self:
        """Nothing to do: it is open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file, and lets others have it."""
        self._file.close()

    def _recover(self) -> None:
        with self.path.open("rb") as file:
            line = file.readline()
            if not line.endswith(b"\n"):  # nothing yet, or ended before the first row
                return
            try:
                self.header = Header.model_validate_json(line)
            except ValidationError as error:
                raise VectorFileError(f"{self.path} is no journal of this version of mae embed: delete it") from error
            end = file.tell()
            for row in _records(file, self.header.space):
                self.paths.append(row.path)
                end = file.tell()
        self._file.truncate(end)


def _records(file: BinaryIO, space: VectorSpace) -> Iterator[Row]:
    """Rows, as far as they are whole; after each, `file` stands at its end."""
    size = 4 * math.prod(space.shape)
    while len(head := file.read(HEAD.size)) == HEAD.size:
        length, checksum, name = HEAD.unpack(head)
        if length != name + size:
            return
        body = file.read(length)
        if len(body) < length or zlib.crc32(body) != checksum:
            return
        yield Row(body[:name].decode(), np.frombuffer(body[name:], "<f4").reshape(space.shape))
