"""The journal of a run: an append-only file that survives if the process ends at any moment."""

from __future__ import annotations

import fcntl
import math
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from service.cli.errors import VectorFileError
from service.cli.vector_files.space import VectorRecord, VectorSpace

RECORD_HEAD = struct.Struct("<IIIIIqq")
"""The head of each record: length of the record in bytes, its CRC-32, lengths of its path, its file and its error in
bytes, size and time of change of the file. The record itself is path, file, error and vector."""
NONE = -1 << 63
"""Stands for None where a record has no size or no time of change."""
SYNC_S = 5.0
"""Least seconds between two calls of fsync."""


class Header(BaseModel):
    """The first line of a journal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[3] = 3
    space: VectorSpace
    replaces: bool
    """Whether the run replaces an existing output instead of adding to it."""
    part: int = 0
    """The number of the shard that the records will become, in a folder of shards."""

    def require_mode(self, overwrite: bool, folder: Path) -> None:
        """Checks that a run may go on with this journal; `folder` is where the journal lies.

        Raises:
            VectorFileError: it belongs to a run with --overwrite, and this one is another.
        """
        if self.replaces and not overwrite:
            raise VectorFileError(
                f"{folder} belongs to a run with --overwrite: repeat the flag to continue it, or delete the folder"
            )


class Journal:
    """Appends records, and reads them back; a record that the end of a process cut short is dropped.

    A record survives the end of the process at once. It survives a loss of power from the next fsync on, which comes
    with the first record after `SYNC_S` seconds. The file is locked, so that two runs cannot write the same output.
    """

    def __init__(self, path: Path) -> None:
        """Opens the journal at `path`, or creates it.

        Raises:
            VectorFileError: another run has it open, or the file is no journal.
        """
        self.path = path
        self.header: Header | None = None
        """The first line; None until `begin` has been called."""
        self.files: dict[str, str] = {}
        """The path of each record's file, in order."""
        self.count = 0
        """Number of records."""
        self._file: BinaryIO = path.open("a+b")
        self._synced = time.monotonic()
        try:
            # The kernel releases the lock with the file, even if the process is killed.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._recover()
        except BlockingIOError:
            self._file.close()
            raise VectorFileError(f"another run is writing {path.parent}") from None
        except BaseException:
            self._file.close()
            raise

    def begin(self, header: Header) -> None:
        """Discards all records and starts a new journal."""
        self._file.truncate(0)
        self._write(header.model_dump_json().encode() + b"\n")
        self.header, self.files, self.count = header, {}, 0

    def append(self, record: VectorRecord) -> None:
        """Adds a record."""
        texts = [text.encode() for text in (record.path, record.file, record.error or "")]
        body = b"".join([*texts, b"" if record.vector is None else record.vector.astype("<f4").tobytes()])
        numbers = (NONE if number is None else number for number in (record.size, record.modified))
        self._write(RECORD_HEAD.pack(len(body), zlib.crc32(body), *map(len, texts), *numbers) + body)
        self.files[record.file] = record.path
        self.count += 1
        if time.monotonic() - self._synced > SYNC_S:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def records(self) -> Iterator[VectorRecord]:
        """All records, in the order in which they were appended."""
        assert self.header is not None
        with self.path.open("rb") as file:
            file.readline()
            yield from _read_records(file, self.header.space)

    def __enter__(self) -> Self:
        """Returns the journal, which is open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the file and releases its lock."""
        # Closing tries once more to write a record for which the disk had no room: the first error is the one to tell.
        with suppress(OSError) if error is not None else nullcontext():
            self._file.close()

    def _write(self, data: bytes) -> None:
        """Writes at the end of the file.

        Raises:
            OSError: it cannot be written; the error names it.
        """
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _recover(self) -> None:
        with self.path.open("rb") as file:
            line = file.readline()
            if not line.endswith(b"\n"):  # the file is new, or the run ended before its first record
                return
            try:
                self.header = Header.model_validate_json(line)
            except ValidationError as error:
                raise VectorFileError(
                    f"{self.path} is not a journal of this version of mae embed: delete it"
                ) from error
            end = file.tell()
            for record in _read_records(file, self.header.space):
                self.files[record.file] = record.path
                self.count += 1
                end = file.tell()
        self._file.truncate(end)


def _read_records(file: BinaryIO, space: VectorSpace) -> Iterator[VectorRecord]:
    """Yields records up to the first one that is incomplete; after each, `file` is positioned at the record's end."""
    vector_bytes = 4 * math.prod(space.shape)
    while len(head := file.read(RECORD_HEAD.size)) == RECORD_HEAD.size:
        length, checksum, path_bytes, file_bytes, error_bytes, *numbers = RECORD_HEAD.unpack(head)
        text_bytes = path_bytes + file_bytes + error_bytes
        if length != text_bytes + (0 if error_bytes else vector_bytes):
            return
        body = file.read(length)
        if len(body) < length or zlib.crc32(body) != checksum:
            return
        path, named_file = body[:path_bytes].decode(), body[path_bytes : path_bytes + file_bytes].decode()
        error = body[path_bytes + file_bytes : text_bytes].decode() or None
        vector = None if error else np.frombuffer(body[text_bytes:], "<f4").reshape(space.shape)
        size, modified = (None if number == NONE else number for number in numbers)
        yield VectorRecord(path, vector, named_file, error, size, modified)
