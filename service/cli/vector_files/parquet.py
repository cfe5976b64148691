"""Rows of Parquet files of vectors: their schema, and vectors <-> columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from service.cli.errors import VectorFileError
from service.cli.vector_files.space import VectorRecord, VectorSpace, blame_file, parse_space

SPACE_KEY = "mae-serve"
"""The key of the schema's metadata under which the vector space is, as JSON."""
ROW_GROUP_BYTES = 4_000_000


def import_pyarrow() -> Any:
    """The package pyarrow with its module `parquet`.

    Raises:
        VectorFileError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise VectorFileError("writing .parquet needs the package pyarrow: pip install pyarrow") from error
    return pyarrow


def schema_of(space: VectorSpace) -> Any:
    """The schema of a file of vectors.

    The columns are `path`, `file`, `vector` (fixed_size_list<float32>[D], of lists for tokens; null where the image
    failed), `error` (null where it did not), `size` (int64, bytes) and `modified` (timestamp[us, UTC]).
    """
    arrow = import_pyarrow()
    vector_type = arrow.float32()
    for length in reversed(space.shape):
        vector_type = arrow.list_(vector_type, length)
    return arrow.schema(
        [
            ("path", arrow.string()),
            ("file", arrow.string()),
            ("vector", vector_type),
            ("error", arrow.string()),
            ("size", arrow.int64()),
            ("modified", arrow.timestamp("us", tz="UTC")),
        ],
        metadata={SPACE_KEY: space.model_dump_json(exclude_none=True)},
    )


def write_rows(path: Path, space: VectorSpace, records: Iterable[VectorRecord]) -> None:
    """Writes a whole file; it holds one row group of the records in memory at a time."""
    arrow, schema, remaining = import_pyarrow(), schema_of(space), iter(records)
    with arrow.parquet.ParquetWriter(path, schema, use_dictionary=False) as writer:
        while group := list(islice(remaining, rows_per_group(space))):
            writer.write_batch(record_batch(group, space, schema))


def record_batch(records: list[VectorRecord], space: VectorSpace, schema: Any) -> Any:
    """The records as an Arrow batch of `schema`."""
    arrow = import_pyarrow()
    vectors = np.zeros((len(records), *space.shape), np.float32)
    failed = np.array([record.vector is None for record in records])
    for row, record in zip(vectors, records, strict=True):
        if record.vector is not None:
            row[...] = record.vector
    column = arrow.array(vectors.ravel())
    for length in reversed(space.shape[1:]):
        column = arrow.FixedSizeListArray.from_arrays(column, length)
    column = arrow.FixedSizeListArray.from_arrays(column, space.shape[0], mask=arrow.array(failed))
    columns = [
        arrow.array([record.path for record in records], arrow.string()),
        arrow.array([record.file for record in records], arrow.string()),
        column,
        arrow.array([record.error for record in records], arrow.string()),
        arrow.array([record.size for record in records], arrow.int64()),
        arrow.array([record.modified for record in records], arrow.int64()).cast(schema.field("modified").type),
    ]
    return arrow.record_batch(columns, schema=schema)


def open_rows(path: Path) -> tuple[Any, VectorSpace]:
    """A file that `write_rows` or an earlier version has written, and its vector space.

    Raises:
        VectorFileError: the file is damaged, or another program wrote it.
    """
    arrow = import_pyarrow()
    with blame_file(path):
        file = arrow.parquet.ParquetFile(path)
        return file, parse_space(path, json.loads(file.schema_arrow.metadata[SPACE_KEY.encode()]))


def read_rows(path: Path) -> Iterator[VectorRecord]:
    """The records of a file, in their order; one row group is in memory at a time.

    Raises:
        VectorFileError: as `open_rows`.
    """
    file, space = open_rows(path)
    with file, blame_file(path):
        for batch in file.iter_batches(batch_size=rows_per_group(space)):
            yield from _records(batch, space)


def read_files(path: Path) -> Iterator[tuple[str, str | None, int | None, int | None]]:
    """The file, error, size and time of change of each row of a shard, as `VectorRecord` has them.

    Raises:
        VectorFileError: as `open_rows`.
    """
    file, _ = open_rows(path)
    names = ("error", "size", "modified")
    with file, blame_file(path):
        for batch in file.iter_batches(columns=["file", *(name for name in names if name in file.schema_arrow.names)]):
            others = (_optional_column(batch, name) for name in names)
            yield from zip(read_texts(batch, "file"), *others, strict=True)


def rows_per_group(space: VectorSpace) -> int:
    """How many rows a row group has."""
    return max(1, ROW_GROUP_BYTES // (4 * prod(space.shape)))


def read_texts(batch: Any, name: str) -> list[str]:
    """The values of a column of texts.

    Raises:
        KeyError: there is no such column.
        ValueError: not all of its values are texts.
    """
    texts = batch.column(name).to_pylist()
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"the column {name} does not hold texts")
    return list(texts)


def _optional_column(batch: Any, name: str) -> list[Any]:
    """The values of a column; None in every row if the file has no such column, because an earlier version wrote it."""
    if name not in batch.schema.names:
        return [None] * len(batch)
    column = batch.column(name)
    return list((column.cast("int64") if name == "modified" else column).to_pylist())


def _records(batch: Any, space: VectorSpace) -> Iterator[VectorRecord]:
    column = batch.column("vector")
    present = column.is_valid().to_numpy(zero_copy_only=False)
    floats = column.drop_null()
    for _ in space.shape:
        floats = floats.flatten()
    shaped = iter(floats.to_numpy().reshape(-1, *space.shape))
    vectors = (next(shaped) if is_present else None for is_present in present)
    files = read_texts(batch, "file") if "file" in batch.schema.names else [""] * len(batch)
    others = (_optional_column(batch, name) for name in ("error", "size", "modified"))
    yield from map(VectorRecord, read_texts(batch, "path"), vectors, files, *others)
