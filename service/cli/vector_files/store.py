"""The output of `mae embed`: a finished file, and next to it the journal of an unfinished run."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from model.atomic_write import replace_file
from service.cli.errors import VectorFileError
from service.cli.files import require_folder
from service.cli.vector_files.file_table import FileEntry, FileTable
from service.cli.vector_files.formats import format_of
from service.cli.vector_files.journal import Header, Journal
from service.cli.vector_files.space import StoredVectors, VectorRecord, VectorSpace


class VectorStore:
    """Appends records to a journal in `OUTPUT.partial/`; `finish` writes the output, completely or not at all."""

    def __init__(self, output: Path, overwrite: bool) -> None:
        """Opens the output and the journal, if they exist.

        Args:
            output: the file to create, or to add to.
            overwrite: whether to replace the file instead.

        Raises:
            VectorFileError: the output cannot be written or added to.
        """
        self.output = output.resolve()  # a link is followed, not replaced
        self._format = format_of(output)
        self._overwrite = overwrite
        require_folder(output)
        if self.output.exists() and not self.output.is_file():
            raise VectorFileError(f"{output} is no regular file")
        self._stored: StoredVectors | None = None
        if self.output.exists() and not overwrite:
            self._stored = self._format.read(self.output)
        self._folder = self.output.with_name(self.output.name + ".partial")
        self._folder.mkdir(exist_ok=True)
        self._journal = Journal(self._folder / "journal")
        self.known = FileTable()
        """The files that have vectors already, and what is put in beside them."""
        self.files: dict[str, str] = {}
        """The files whose vectors are stored already, with the paths that they were given by, in the output's order."""

    @property
    def space(self) -> VectorSpace | None:
        """The space of the stored vectors; None if there are none, or if they will be replaced."""
        if self._stored:
            return self._stored.space
        header = self._journal.header
        return header.space if header and header.replaces == self._overwrite else None

    def begin(self, space: VectorSpace) -> None:
        """Prepares to append records of one vector space.

        Raises:
            VectorFileError: the stored vectors belong to another space.
        """
        if self._stored:
            self._stored.space.require(space, self.output)
        header = Header(space=space, replaces=self._overwrite)
        existing = self._journal.header
        if existing is None or (self._overwrite and existing != header):
            self._journal.begin(header)
        else:
            existing.require_mode(self._overwrite, self._folder)
            existing.space.require(space, self._folder)
        if self._stored:
            self.files = dict(zip(self._stored.files, self._stored.paths, strict=True))
        for file, path in self._journal.files.items():
            self.files.setdefault(file, path)
        for file in self.files:
            self.known.put(file, FileEntry(None, None, 0, 0, failed=False))

    def append(self, record: VectorRecord) -> None:
        """Adds a record to the journal."""
        self._journal.append(record)
        self.files[record.file] = record.path

    def finish(self) -> None:
        """Writes the output with all records, and deletes the journal."""
        if self._journal.files:
            assert self._journal.header is not None
            complete = self._folder / self.output.name
            self._format.write(complete, self._journal.header.space, self.files, self._records())
            replace_file(self.output, complete)
        self._delete_journal()

    def __enter__(self) -> Self:
        """Returns the store, which is open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Releases the lock; the folder of a run that never began is deleted."""
        if self._journal.header is None and self._folder.exists():
            self._delete_journal()
        self._journal.__exit__(kind, error, trace)

    def _delete_journal(self) -> None:
        self._journal.path.unlink()
        (self._folder / self.output.name).unlink(missing_ok=True)
        self._folder.rmdir()

    def _records(self) -> Iterator[VectorRecord]:
        """The records of the output, then those that the journal adds.

        Both hold the same records if a run ended after it wrote the output and before it deleted the journal.
        """
        seen: set[str] = set()
        for record in chain(self._stored.records if self._stored else (), self._journal.records()):
            if record.file not in seen:
                seen.add(record.file)
                yield record
