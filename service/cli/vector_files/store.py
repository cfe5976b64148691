"""The output of `mae embed`: a finished file, and beside it what an unfinished run has done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from service.cli.files import require_folder
from service.cli.vector_files.formats import format_of
from service.cli.vector_files.journal import Header, Journal
from service.cli.vector_files.space import Row, Stored, VectorFileError, VectorSpace


class Store:
    """Rows go to a journal in `OUTPUT.partial/`; `finish` makes the output of them, at once or not at all."""

    def __init__(self, output: Path, overwrite: bool) -> None:
        """Finds out what is there already.

        Args:
            output: the file to make, or to add to.
            overwrite: whether it is to be replaced instead.

        Raises:
            VectorFileError: it cannot be written or added to.
        """
        self.output = output.resolve()  # a link is followed, not replaced
        self._format = format_of(output)
        self._overwrite = overwrite
        require_folder(output)
        if self.output.exists() and not self.output.is_file():
            raise VectorFileError(f"{output} is no regular file")
        self._stored: Stored | None = None
        if self.output.exists() and not overwrite:
            self._stored = self._format.read(self.output)
        self._folder = self.output.with_name(self.output.name + ".partial")
        self._folder.mkdir(exist_ok=True)
        self._journal = Journal(self._folder / "journal")
        self.paths: dict[str, None] = {}
        """Images that need not be embedded any more, in the order of the output to be."""

    @property
    def space(self) -> VectorSpace | None:
        """Of the vectors that are there; None if there are none, or they are to be replaced."""
        if self._stored:
            return self._stored.space
        header = self._journal.header
        return header.space if header and header.replaces == self._overwrite else None

    def begin(self, space: VectorSpace) -> None:
        """Gets ready for rows of one vector space.

        Raises:
            VectorFileError: what is there is of another one.
        """
        if self._stored:
            self._stored.space.require(space, self.output)
        header = Header(space=space, replaces=self._overwrite)
        found = self._journal.header
        if found is None or (self._overwrite and found != header):
            self._journal.begin(header)
        else:
            if found.replaces and not self._overwrite:
                raise VectorFileError(
                    f"{self._folder} is of a run with --overwrite: repeat the flag to go on, or delete the folder"
                )
            found.space.require(space, self._folder)
        self.paths = dict.fromkeys(chain(self._stored.paths if self._stored else (), self._journal.paths))

    def append(self, row: Row) -> None:
        """Keeps a row."""
        self._journal.append(row)
        self.paths[row.path] = None

    def finish(self) -> None:
        """Makes the output of all rows, and clears away the journal."""
        if self._journal.paths:
            assert self._journal.header is not None
            fresh = self._folder / self.output.name
            self._format.write(fresh, self._journal.header.space, self.paths, self._rows())
            _sync(fresh)
            os.replace(fresh, self.output)
            _sync(self.output.parent)
        self._clear()

    def __enter__(self) -> Self:
        """Nothing to do: it is open."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Lets others have it; leaves no trace of a run that never began."""
        if self._journal.header is None and self._folder.exists():
            self._clear()
        self._journal.__exit__(kind, error, trace)

    def _clear(self) -> None:
        self._journal.path.unlink()
        (self._folder / self.output.name).unlink(missing_ok=True)
        self._folder.rmdir()

    def _rows(self) -> Iterator[Row]:
        """What was stored, then what the journal adds to it.

        They share rows where a run ended between finishing the output and clearing away the journal.
        """
        seen: set[str] = set()
        for row in chain(self._stored.rows if self._stored else (), self._journal.rows()):
            if row.path not in seen:
                seen.add(row.path)
                yield row


def _sync(path: Path) -> None:
    """Returns when the file or folder at `path` would outlive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
