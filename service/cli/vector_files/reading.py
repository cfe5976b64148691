"""Reading what `mae embed` has written, whatever its format: for indexes and other commands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.cli.vector_files.formats import FORMATS, format_of
from service.cli.vector_files.parquet import open_rows, read_rows
from service.cli.vector_files.shard_store import shard_paths
from service.cli.vector_files.space import VectorRecord, VectorSpace, foreign_file_error


@dataclass(frozen=True)
class VectorFile:
    """An output of `mae embed`."""

    space: VectorSpace
    count: int
    """Number of records."""
    records: Iterator[VectorRecord]
    """The records in their order; each is read from the file when it is needed, once."""


def is_vector_file(path: Path) -> bool:
    """Whether a path is named like an output of `mae embed`, or is a folder that holds shards of one."""
    return bool(shard_paths(path)) if path.is_dir() else path.is_file() and path.suffix in FORMATS


def read_vectors(path: Path) -> VectorFile:
    """Opens a file of vectors, or a folder of shards.

    The records of images that failed have no vector; only folders of shards hold such. `size` and `modified` are None
    where the format or the source has none. If a run was cut off after it embedded a changed image anew, the folder has
    two records of it until that run is continued, and the later one is right.

    Raises:
        VectorFileError: the file is damaged, `mae embed` did not write it, or pyarrow is missing; while the records are
            read, too.
        OSError: it cannot be read.
    """
    if not path.is_dir():
        stored = format_of(path).read(path)
        return VectorFile(stored.space, len(stored.paths), stored.records)
    shards = list(shard_paths(path).values())
    if not shards:
        raise foreign_file_error(path)
    spaces, count = set(), 0
    for shard in shards:
        file, space = open_rows(shard)
        with file:
            spaces.add(space)
            count += file.metadata.num_rows
    if len(spaces) > 1:
        raise foreign_file_error(path)
    return VectorFile(spaces.pop(), count, (record for shard in shards for record in read_rows(shard)))
