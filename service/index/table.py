"""The table of an index, and its rows.

Columns: `file` (the absolute path without links, by which an image is recognised), `path` (as the user gave it),
`vector` (float32 [D]), `size` (bytes) and `modified` (time of the last change), both null where they are not known,
`source` (the file of vectors that the row comes from, or null for an image that was embedded for the index), and
`thumbnail` (JPEG, or null).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from model.arrays import Floats
from service.index.description import METADATA_KEY, IndexDescription


class IndexRow(NamedTuple):
    """An image to be stored."""

    file: str
    path: str
    vector: Floats
    """Float32 [D]."""
    size: int | None
    """Bytes of the image's file."""
    modified: int | None
    """Time of the file's last change, in microseconds since 1970, UTC."""
    source: str | None = None
    thumbnail: bytes | None = None


class StoredFile(NamedTuple):
    """What an index knows of an image, apart from its vector."""

    size: int | None
    modified: int | None
    source: str | None


def schema_of(description: IndexDescription) -> Any:
    """The Arrow schema of the table."""
    import pyarrow

    return pyarrow.schema(
        [
            ("file", pyarrow.string()),
            ("path", pyarrow.string()),
            ("vector", pyarrow.list_(pyarrow.float32(), description.dim)),
            ("size", pyarrow.int64()),
            ("modified", pyarrow.timestamp("us", tz="UTC")),
            ("source", pyarrow.string()),
            ("thumbnail", pyarrow.binary()),
        ],
        metadata={METADATA_KEY: description.model_dump_json(exclude_none=True)},
    )


def batch_of(rows: Sequence[IndexRow], description: IndexDescription) -> Any:
    """Rows as an Arrow batch; at least one."""
    import pyarrow

    schema = schema_of(description)
    vectors = pyarrow.array(np.concatenate([row.vector for row in rows]).astype(np.float32))
    columns = {
        "file": pyarrow.array([row.file for row in rows], pyarrow.string()),
        "path": pyarrow.array([row.path for row in rows], pyarrow.string()),
        "vector": pyarrow.FixedSizeListArray.from_arrays(vectors, description.dim),
        "size": pyarrow.array([row.size for row in rows], pyarrow.int64()),
        "modified": pyarrow.array([row.modified for row in rows], schema.field("modified").type),
        "source": pyarrow.array([row.source for row in rows], pyarrow.string()),
        "thumbnail": pyarrow.array([row.thumbnail for row in rows], pyarrow.binary()),
    }
    return pyarrow.record_batch([columns[name] for name in schema.names], schema=schema)
