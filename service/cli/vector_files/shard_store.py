"""The output of `mae embed` to a folder: shards of Parquet, and the journal of the shard that is being filled.

    vectors/part-00000.parquet …      finished shards; any program may read them at any time
    vectors/.partial/journal          the rows of the next shard, and the lock
    vectors/.partial/replacement/     the shards of a run with --overwrite, until it is complete

A row is in the journal before the next image is stored, and leaves it only when its shard stands in the folder. The
journal names its shard, so that a journal whose shard exists is known to be done with. A new row of a file that has one
already (an image that was changed, or had failed) stands in a later shard than the old row; `finish` then writes the
old row's shard anew without it. If a run ends before that, the next one finds two rows of a file, and keeps the later.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Self

from model.atomic_write import atomic_write, replace_file, sync
from service.cli.errors import VectorFileError
from service.cli.files import require_folder
from service.cli.vector_files.file_table import FileEntry, FileTable
from service.cli.vector_files.formats import FORMATS
from service.cli.vector_files.journal import Header, Journal
from service.cli.vector_files.parquet import import_pyarrow, open_rows, read_files, read_rows, write_rows
from service.cli.vector_files.space import VectorRecord, VectorSpace

SHARD_BYTES = 16_000_000
"""About so many bytes of vectors are in a shard: 20,833 vectors of 192 numbers."""
MAX_SHARD_ROWS = 100_000
PART = re.compile(r"part-([0-9]{5,})\.parquet")


def is_shard_folder(output: str) -> bool:
    """Whether an output, as it was typed, is a folder of shards: it is a folder, or ends in a slash."""
    return output.endswith(os.sep) or (os.path.isdir(output) and Path(output).suffix not in FORMATS)


def shard_paths(folder: Path) -> dict[int, Path]:
    """The shards in a folder by their numbers, in order."""
    numbered = ((PART.fullmatch(path.name), path) for path in folder.iterdir())
    return dict(sorted((int(match[1]), path) for match, path in numbered if match))


class ShardStore:
    """Appends records to the shards of a folder; after the end of a process at any moment no row is lost or doubled."""

    def __init__(self, output: Path, overwrite: bool) -> None:
        """Opens the folder, or makes it, and reads which files it has rows of.

        Args:
            output: the folder; its parent exists.
            overwrite: whether to replace its shards once the run is complete.

        Raises:
            VectorFileError: pyarrow is missing, another run is writing the folder, or a shard is damaged or of another
                space than the first.
        """
        import_pyarrow()
        require_folder(output)
        if output.exists() and not output.is_dir():
            raise VectorFileError(f"{output} is a file; without the slash at its end it would be added to")
        self.output = output.resolve()
        self.known = FileTable()
        """The files that have rows, and what is put in beside them."""
        self.count = 0
        """Number of files that have rows."""
        self._overwrite = overwrite
        self._made = not self.output.exists()
        self._folder = self.output / ".partial"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._journal = Journal(self._folder / "journal")
        try:
            self._complete_replacement()
            self._shards = self._folder / "replacement" if overwrite else self.output
            self._space: VectorSpace | None = None
            self._stale: dict[int, set[int]] = defaultdict(set)
            if self._shards.exists():
                self._read_shards()
            self._read_journal()
        except BaseException:
            self._journal.__exit__(None, None, None)
            raise

    @property
    def space(self) -> VectorSpace | None:
        """The space of the stored vectors; None if there are none, or if they will be replaced."""
        header = self._journal.header
        return self._space or (header.space if header and header.replaces == self._overwrite else None)

    def begin(self, space: VectorSpace) -> None:
        """Prepares to append records of one vector space.

        Raises:
            VectorFileError: the stored vectors belong to another space.
        """
        header = self._journal.header
        if header:
            header.require_mode(self._overwrite, self._folder)
        if self._overwrite and header and header.space != space:  # a replacement of another kind begins anew
            shutil.rmtree(self._shards, ignore_errors=True)
            self._space, header, self.known, self.count = None, None, FileTable(), 0
            self._stale.clear()
        if self._space:
            self._space.require(space, self.output)
        if header and header.replaces == self._overwrite:
            header.space.require(space, self.output)
        else:
            self._shards.mkdir(exist_ok=True)
            part = max(shard_paths(self._shards), default=-1) + 1
            self._journal.begin(Header(space=space, replaces=self._overwrite, part=part))
        self._max_rows = max(1, min(MAX_SHARD_ROWS, SHARD_BYTES // (4 * prod(space.shape))))

    def append(self, record: VectorRecord) -> None:
        """Stores a record; it replaces one of the same file."""
        assert self._journal.header is not None
        self._journal.append(record)
        self._note(record, self._journal.header.part, self._journal.count - 1, named=True)
        if self._journal.count >= self._max_rows:
            self._write_shard()

    def finish(self) -> None:
        """Writes the last shard, and writes shards anew that hold rows which later ones replace."""
        self._write_shard()
        for number, rows in self._stale.items():
            path = self._shards / _name(number)
            _, space = open_rows(path)
            kept = (record for row, record in enumerate(read_rows(path)) if row not in rows)
            if (first := next(kept, None)) is None:
                path.unlink()
            else:
                self._write(path, space, chain([first], kept))
        self._stale.clear()
        if self._overwrite:
            numbers = " ".join(map(str, shard_paths(self._shards)))
            atomic_write(self._folder / "complete", numbers.encode(), durable=True)
            self._complete_replacement()
        self._delete_partial()

    def unnamed_files(self) -> Iterator[str]:
        """The files that have rows and that `known` does not mark as named."""
        for path in shard_paths(self.output).values():
            for name, *_ in read_files(path):
                if (entry := self.known.find(name)) is not None and not entry.named:
                    yield name

    def __enter__(self) -> Self:
        """Returns the store, which is open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Releases the lock; what a run that never began has made is deleted."""
        if self._journal.header is None and self._folder.exists():
            self._delete_partial()
            if self._made and not any(self.output.iterdir()):
                self.output.rmdir()
        self._journal.__exit__(kind, error, trace)

    def _read_shards(self) -> None:
        first: Path | None = None
        for number, path in shard_paths(self._shards).items():
            file, space = open_rows(path)
            file.close()
            if first is None:
                first, self._space = path, space
            elif self._space != space:
                raise VectorFileError(f"{path} holds vectors of another space than {first}")
            for row, (name, error, size, modified) in enumerate(read_files(path)):
                self._note(VectorRecord("", None, name, error, size, modified), number, row)

    def _read_journal(self) -> None:
        header = self._journal.header
        if header is None or header.replaces != self._overwrite:
            return
        if (self._shards / _name(header.part)).exists():  # the run ended after it wrote the shard
            self._journal.begin(header.model_copy(update={"part": header.part + 1}))
        for row, record in enumerate(self._journal.records()):
            self._note(record, header.part, row)

    def _note(self, record: VectorRecord, part: int, row: int, named: bool = False) -> None:
        """Remembers where the row of a file is; an earlier row of it becomes stale."""
        if (known := self.known.find(record.file)) is not None and known.part >= 0:
            self._stale[known.part].add(known.row)
        else:
            self.count += 1
        self.known.put(record.file, FileEntry(record.size, record.modified, part, row, record.error is not None, named))

    def _write_shard(self) -> None:
        """Turns the journal into a shard, and begins the journal of the next."""
        header = self._journal.header
        assert header is not None
        if self._journal.count:
            self._write(self._shards / _name(header.part), header.space, self._journal.records())
            self._journal.begin(header.model_copy(update={"part": header.part + 1}))

    def _write(self, path: Path, space: VectorSpace, records: Iterator[VectorRecord]) -> None:
        """Writes a whole shard or none."""
        unfinished = self._folder / "shard"
        write_rows(unfinished, space, records)
        replace_file(path, unfinished)

    def _complete_replacement(self) -> None:
        """Moves the shards of a complete run with --overwrite into the folder, in place of those that are there."""
        mark, folder = self._folder / "complete", self._folder / "replacement"
        if not mark.exists():
            return
        new = {int(number) for number in mark.read_text().split()}
        for path in shard_paths(folder).values() if folder.exists() else ():
            os.replace(path, self.output / path.name)
        for number, path in shard_paths(self.output).items():
            if number not in new:
                path.unlink()
        sync(self.output)
        self._delete_partial()
        self._folder.mkdir()
        self._journal.__exit__(None, None, None)
        self._journal = Journal(self._folder / "journal")

    def _delete_partial(self) -> None:
        shutil.rmtree(self._folder)


def _name(number: int) -> str:
    return f"part-{number:05}.parquet"
