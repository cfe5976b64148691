"""The formats of `mae embed`: .npz, .parquet and .jsonl."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.lib import format as npy

from service.cli.vector_files.space import Format, Row, Stored, VectorFileError, VectorSpace, foreign, read_space

SPACE_KEY = "mae-serve"
ROW_GROUP_BYTES = 4_000_000


class Npz:
    """`paths` and `vectors` [n, D] or [n, K, D]; each fact of the vector space is an array beside them."""

    def read(self, path: Path) -> Stored:
        """See `Format.read`."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                facts = {name: arrays[name].tolist() for name in VectorSpace.model_fields if name in arrays}
                facts["preprocessing"] = json.loads(facts["preprocessing"])
                paths = arrays["paths"].tolist()
            with zipfile.ZipFile(path) as archive, archive.open("vectors.npy") as member:
                shape, _, dtype = _read_header(member)
        except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
            raise foreign(path) from error
        space = read_space(path, facts)
        if (shape, dtype) != ((len(paths), *space.shape), np.dtype("<f4")):
            raise foreign(path)
        return Stored(space, paths, self._rows(path, space, paths))

    def write(self, path: Path, space: VectorSpace, paths: Collection[str], rows: Iterable[Row]) -> None:
        """See `Format.write`."""
        facts = space.model_dump(exclude_none=True) | {"preprocessing": space.preprocessing.model_dump_json()}
        width = max(map(len, paths))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            with _member(archive, "paths", np.dtype(f"<U{width}"), (len(paths),)) as member:
                for one in paths:
                    member.write(one.encode("utf-32-le").ljust(4 * width, b"\0"))
            with _member(archive, "vectors", np.dtype("<f4"), (len(paths), *space.shape)) as member:
                for row in rows:
                    member.write(row.vector.astype("<f4").tobytes())
            for name, fact in facts.items():
                array = np.array(fact, dtype=np.uint64 if name == "seed" else None)
                with _member(archive, name, array.dtype, array.shape) as member:
                    member.write(array.tobytes())

    def _rows(self, path: Path, space: VectorSpace, paths: list[str]) -> Iterator[Row]:
        size = 4 * math.prod(space.shape)
        with zipfile.ZipFile(path) as archive, archive.open("vectors.npy") as member:
            _read_header(member)
            for one in paths:
                yield Row(one, np.frombuffer(member.read(size), "<f4").reshape(space.shape))


class Parquet:
    """Columns `path` and `vector`, a list of fixed size; the vector space is JSON in the schema's metadata."""

    def __init__(self) -> None:
        """Needs pyarrow.

        Raises:
            VectorFileError: it is not installed.
        """
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise VectorFileError("writing .parquet needs the package pyarrow: pip install pyarrow") from error
        self._arrow = pyarrow

    def read(self, path: Path) -> Stored:
        """See `Format.read`."""
        try:
            file = self._arrow.parquet.ParquetFile(path)
            space = read_space(path, json.loads(file.schema_arrow.metadata[SPACE_KEY.encode()]))
            paths = [one for batch in file.iter_batches(columns=["path"]) for one in batch.column(0).to_pylist()]
        except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's own are ValueErrors too
            raise foreign(path) from error
        return Stored(space, paths, self._rows(file, space))

    def write(self, path: Path, space: VectorSpace, paths: Collection[str], rows: Iterable[Row]) -> None:
        """See `Format.write`."""
        kind = self._arrow.float32()
        for length in reversed(space.shape):
            kind = self._arrow.list_(kind, length)
        schema = self._arrow.schema(
            [("path", self._arrow.string()), ("vector", kind)],
            metadata={SPACE_KEY: space.model_dump_json(exclude_none=True)},
        )
        left = iter(rows)
        with self._arrow.parquet.ParquetWriter(path, schema, use_dictionary=False) as writer:
            while group := list(islice(left, _group_size(space))):
                vectors = self._arrow.array(np.concatenate([row.vector.ravel() for row in group]))
                for length in reversed(space.shape):
                    vectors = self._arrow.FixedSizeListArray.from_arrays(vectors, length)
                columns = [self._arrow.array([row.path for row in group]), vectors]
                writer.write_batch(self._arrow.record_batch(columns, schema=schema))

    def _rows(self, file: Any, space: VectorSpace) -> Iterator[Row]:
        with file:
            for batch in file.iter_batches(batch_size=_group_size(space)):
                vectors = batch.column("vector")
                for _ in space.shape:
                    vectors = vectors.flatten()
                shaped = vectors.to_numpy().reshape(len(batch), *space.shape)
                yield from map(Row, batch.column("path").to_pylist(), shaped)


class JsonLines:
    """One object a line, all alike: `path`, `vector`, `space`. So lines can be split, shuffled and joined freely."""

    def read(self, path: Path) -> Stored:
        """See `Format.read`."""
        spaces: set[VectorSpace] = set()
        paths = []
        for line in self._lines(path):
            space = line.get("space")
            if not isinstance(line.get("path"), str) or "vector" not in line:
                raise foreign(path)
            paths.append(line["path"])
            spaces.add(read_space(path, space))
        if len(spaces) != 1:
            raise VectorFileError(f"{path} holds {len(spaces)} vector spaces, and only one can be added to")
        [space] = spaces
        return Stored(space, paths, self._rows(path, space))

    def write(self, path: Path, space: VectorSpace, paths: Collection[str], rows: Iterable[Row]) -> None:
        """See `Format.write`."""
        said = space.model_dump(exclude_none=True)
        with path.open("wb") as file:
            for row in rows:
                line = {"path": row.path, "vector": row.vector, "space": said}
                file.write(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))

    def _rows(self, path: Path, space: VectorSpace) -> Iterator[Row]:
        for line in self._lines(path):
            try:
                vector = np.array(line["vector"], dtype=np.float32).reshape(space.shape)
            except (TypeError, ValueError) as error:
                raise foreign(path) from error
            yield Row(line["path"], vector)

    def _lines(self, path: Path) -> Iterator[dict[str, Any]]:
        with path.open("rb") as file:
            for text in file:
                try:
                    line = orjson.loads(text)
                except orjson.JSONDecodeError as error:
                    raise foreign(path) from error
                if not isinstance(line, dict):
                    raise foreign(path)
                yield line


FORMATS: dict[str, type[Format]] = {".npz": Npz, ".parquet": Parquet, ".jsonl": JsonLines}


def format_of(path: Path) -> Format:
    """The format that a file's suffix asks for.

    Raises:
        VectorFileError: there is none such, or a package is missing for it.
    """
    if path.suffix not in FORMATS:
        raise VectorFileError(f"{path} should end in one of {', '.join(FORMATS)}: the format is told by the suffix")
    return FORMATS[path.suffix]()


def _member(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> BinaryIO:
    """An array in an .npz, open for its bytes."""
    member = archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)
    npy.write_array_header_1_0(member, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    return member  # type: ignore[return-value]


def _read_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    npy.read_magic(member)
    return npy.read_array_header_1_0(member)


def _group_size(space: VectorSpace) -> int:
    return max(1, ROW_GROUP_BYTES // (4 * math.prod(space.shape)))
