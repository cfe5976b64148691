"""An index of images: a LanceDB table in a folder `NAME.lance`, which LanceDB opens by itself, too."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import ValidationError

from model.arrays import Floats
from service.index.description import METADATA_KEY, Approximation, IndexDescription
from service.index.errors import ImageIndexError, MissingIndex
from service.index.lance import import_lance
from service.index.table import IndexRow, StoredFile, batch_of, schema_of
from service.inference.searcher import Neighbour

T = TypeVar("T")
SUFFIX = ".lance"
REFRESH = timedelta(seconds=1)
"""A search sees what another process has written at most this much later."""
KEPT_VERSIONS = timedelta(hours=1)
"""For so long, a search that has begun can read what was replaced meanwhile."""
NAMES_PER_DELETION = 1000
CELLS = "cells"
"""LanceDB's name of the approximate index."""
PLACE_IN_SOURCE = re.compile(r",? ?\S+\.rs:\d+:\d+")


class ImageIndex:
    """An open index.

    Searches may run in several threads at once, also while another process writes: each search sees one version of
    the index, the newest by at most `REFRESH`. All methods block, a search for milliseconds to seconds, and release
    the GIL meanwhile: call them from a thread, never on an event loop. Only one process may write (see `writer`).
    """

    def __init__(self, path: Path) -> None:
        """Opens the index at `path`.

        Raises:
            MissingIndex: there is none.
            ImageIndexError: LanceDB is not installed, or this is no index that `mae index` has made.
        """
        self.path = path
        self._table = _open_table(path)
        schema = self._run(lambda: self._table.schema)
        self._metadata: bytes | None = (schema.metadata or {}).get(METADATA_KEY.encode())
        try:
            self.description = IndexDescription.model_validate_json(self._metadata or b"")
        except ValidationError as error:
            raise ImageIndexError(f"{path} is no index that mae index has made") from error

    @classmethod
    def open(cls, path: Path, space: str | None = None) -> Self:
        """Opens the index at `path`, whose vectors must be of `space` if one is given.

        Raises:
            MissingIndex: there is none.
            ForeignSpace: its vectors are of another space; the message names both.
            ImageIndexError: LanceDB is not installed, or this is no index that `mae index` has made.
        """
        index = cls(path)
        if space is not None:
            index.description.require(space, str(path))
        return index

    @classmethod
    def create(cls, path: Path, description: IndexDescription) -> Self:
        """Creates an empty index.

        Raises:
            ImageIndexError: LanceDB is not installed, the path does not end in .lance, or something is there already.
        """
        lancedb = import_lance()
        _require_suffix(path)
        if path.exists():
            raise ImageIndexError(f"{path} exists already")
        try:
            lancedb.connect(path.absolute().parent).create_table(path.stem, schema=schema_of(description))
        except (ValueError, RuntimeError, OSError) as error:
            raise ImageIndexError(f"{path} cannot be written: {_reason(error)}") from error
        return cls(path)

    @property
    def name(self) -> str:
        """The name of the index, without its folder and suffix."""
        return self.path.stem

    @property
    def space(self) -> str:
        """The vector space in one word."""
        return self.description.space

    @property
    def model(self) -> str:
        """The name of the model and the hash of its weights."""
        return self.description.model

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self._run(lambda: self._current().count_rows()))

    @property
    def approximation(self) -> Approximation | None:
        """How searches are approximated; None if they are exact."""
        return self._run(lambda: _read_approximation(self._current()))

    def search(
        self,
        vectors: Floats,
        k: int = 10,
        *,
        exact: bool = False,
        thumbnails: bool = False,
        approximation: Approximation | None = None,
    ) -> list[list[Neighbour]]:
        """The nearest neighbours of each vector by cosine similarity, the most similar first.

        Args:
            vectors: float32 [n, D], of the index's space.
            k: number of neighbours; fewer come back from an index of fewer images.
            exact: whether to compare with every vector, although there is an approximate index.
            thumbnails: whether to read thumbnails.
            approximation: how to search; by default as the index says.

        Raises:
            ImageIndexError: the index cannot be read, or another one was put in its place.
        """
        if not len(vectors):
            return []
        queries = np.asarray(vectors, np.float32)
        found = self._run(lambda: self._search(queries, k, exact, thumbnails, approximation))
        neighbours: list[list[Neighbour]] = [[] for _ in vectors]
        columns = [found.column(name).to_pylist() for name in ("query_index", "file", "path", "_distance")]
        pictures = found.column("thumbnail").to_pylist() if thumbnails else [None] * len(found)
        for query, file, path, distance, picture in zip(*columns, pictures, strict=True):
            neighbours[query].append(Neighbour(file, path, min(1.0, 1 - distance), picture))
        return neighbours

    def files(self) -> dict[str, StoredFile]:
        """What is known of each image, by its file."""
        stored: dict[str, StoredFile] = {}
        for batch in self._batches(["file", "size", "modified", "source"]):
            modified = batch.column("modified").cast("int64").to_pylist()
            columns = (batch.column("size").to_pylist(), modified, batch.column("source").to_pylist())
            stored.update(zip(batch.column("file").to_pylist(), map(StoredFile, *columns), strict=True))
        return stored

    def vectors(self, rows_at_once: int = 4096) -> Iterator[tuple[list[str], list[str], Floats]]:
        """Files, paths and vectors, float32 [n, D], of all images, some at a time."""
        for batch in self._batches(["file", "path", "vector"], rows_at_once):
            flat = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
            vectors = flat.reshape(len(batch), self.description.dim)
            yield batch.column("file").to_pylist(), batch.column("path").to_pylist(), vectors

    @contextmanager
    def writer(self) -> Iterator[None]:
        """Keeps other processes from writing; the kernel ends it with the process.

        Raises:
            ImageIndexError: another process writes.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._run(lambda: self._table.checkout_latest())  # what another process wrote just before
            yield
        except BlockingIOError:
            raise ImageIndexError(f"another process is writing {self.path}") from None
        finally:
            os.close(descriptor)

    def add(self, rows: Sequence[IndexRow]) -> None:
        """Stores images whose files the index does not have, all of them or none."""
        if rows:
            batch = batch_of(rows, self.description)
            self._run(lambda: self._table.add(batch))

    def replace(self, rows: Sequence[IndexRow]) -> None:
        """Stores images in place of those with the same files, all of them or none."""
        if rows:
            batch = batch_of(rows, self.description)
            merge = self._table.merge_insert("file").when_matched_update_all().when_not_matched_insert_all()
            self._run(lambda: merge.execute(batch))

    def remove(self, files: Iterable[str]) -> None:
        """Drops images."""
        names = ["'" + file.replace("'", "''") + "'" for file in files]
        for start in range(0, len(names), NAMES_PER_DELETION):
            chosen = ", ".join(names[start : start + NAMES_PER_DELETION])
            self._run(lambda chosen=chosen: self._table.delete(f"file IN ({chosen})"))  # type: ignore[misc]

    def compact(self) -> None:
        """Merges small files, brings new images into an approximate index, and deletes versions that nobody reads."""
        self._run(lambda: self._table.optimize(cleanup_older_than=KEPT_VERSIONS))

    def build_cells(self, partitions: int) -> None:
        """Divides all vectors into cells of similar ones, for an approximate search."""
        from lancedb.index import IvfFlat

        config = IvfFlat(distance_type="cosine", num_partitions=partitions)
        self._run(lambda: self._table.create_index("vector", config=config, name=CELLS, replace=True))

    def set_approximation(self, approximation: Approximation) -> None:
        """Stores how searches are approximated from now on."""
        metadata = {METADATA_KEY: approximation.model_dump_json()}
        self._run(lambda: self._table.update_field_metadata({"path": "vector", "metadata": metadata}))

    def remove_approximation(self) -> None:
        """Makes searches exact; does nothing where they are."""
        if self.approximation is None:
            return
        self._run(lambda: self._table.update_field_metadata({"path": "vector", "metadata": {METADATA_KEY: None}}))
        self._run(lambda: self._table.drop_index(CELLS))

    def _search(
        self, vectors: Floats, k: int, exact: bool, thumbnails: bool, approximation: Approximation | None
    ) -> Any:
        """A table with a row per neighbour: query_index, file, path, _distance."""
        import pyarrow

        table = self._current()
        columns = ["file", "path", "_distance", *(["thumbnail"] if thumbnails else [])]
        query = table.search(vectors).distance_type("cosine").limit(k).select(columns)
        if approximation is None and not exact:
            approximation = _read_approximation(table)
        query = query.bypass_vector_index() if approximation is None else query.nprobes(approximation.probes)
        found = query.to_arrow()
        if "query_index" not in found.column_names:  # of a single query
            found = found.append_column("query_index", pyarrow.array([0] * len(found), pyarrow.int32()))
        return found

    def _current(self) -> Any:
        """The table.

        Raises:
            ImageIndexError: another index was put in its place.
        """
        if (self._table.schema.metadata or {}).get(METADATA_KEY.encode()) != self._metadata:
            raise ImageIndexError(f"{self.path} was replaced by another index: open it again")
        return self._table

    def _batches(self, columns: list[str], rows_at_once: int = 8192) -> Iterator[Any]:
        batches = self._run(lambda: self._current().search().select(columns).to_batches(rows_at_once))
        while (batch := self._run(lambda: next(batches, None))) is not None:
            yield batch

    def _run(self, call: Callable[[], T]) -> T:
        """Calls LanceDB, whose errors of the disk and of damaged files are ValueError and RuntimeError.

        Raises:
            ImageIndexError: LanceDB failed.
        """
        try:
            return call()
        except (ValueError, RuntimeError, OSError) as error:
            raise ImageIndexError(f"{self.path} cannot be used: {_reason(error)}") from error


def _open_table(path: Path) -> Any:
    lancedb = import_lance()
    _require_suffix(path)
    if not path.is_dir():
        raise MissingIndex(f"there is no index {path}")
    try:
        return lancedb.connect(path.absolute().parent, read_consistency_interval=REFRESH).open_table(path.stem)
    except (ValueError, RuntimeError, OSError) as error:
        raise ImageIndexError(f"{path} is no index that mae index has made") from error


def _reason(error: Exception) -> str:
    """What LanceDB says of an error, without the line of its source code."""
    return PLACE_IN_SOURCE.sub("", str(error))


def _require_suffix(path: Path) -> None:
    if path.suffix != SUFFIX or not path.stem:
        raise ImageIndexError(f"{path} should end in {SUFFIX}, as the folders of LanceDB's tables do")


def _read_approximation(table: Any) -> Approximation | None:
    stored = (table.schema.field("vector").metadata or {}).get(METADATA_KEY.encode())
    return None if stored is None else Approximation.model_validate_json(stored)
