"""The file formats of `mae embed`: .npz, .parquet and .jsonl."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from numpy.lib import format as npy

from service.cli.errors import VectorFileError
from service.cli.vector_files.parquet import import_pyarrow, open_rows, read_rows, read_texts, write_rows
from service.cli.vector_files.space import (
    Format,
    StoredVectors,
    VectorRecord,
    VectorSpace,
    blame_file,
    foreign_file_error,
    parse_space,
)


class Npz:
    """Arrays `paths` [n], `files` [n] and `vectors`, float32 [n, D] or [n, K, D]; so is each property of the space."""

    def read(self, path: Path) -> StoredVectors:
        """See `Format.read`."""
        with blame_file(path), path.open("rb") as file:  # of a damaged file, np.load would leave it open
            with np.load(file, allow_pickle=False) as arrays:
                properties = {name: arrays[name].tolist() for name in VectorSpace.model_fields if name in arrays}
                properties["preprocessing"] = json.loads(properties["preprocessing"])
                paths = _to_texts(arrays["paths"])
                files = _to_texts(arrays["files"]) if "files" in arrays else [""] * len(paths)
            with zipfile.ZipFile(file) as archive, archive.open("vectors.npy") as member:
                shape, _, dtype = _read_header(member)
        space = parse_space(path, properties)
        if (shape, dtype) != ((len(paths), *space.shape), np.dtype("<f4")):
            raise foreign_file_error(path)
        if len(files) != len(paths):
            raise foreign_file_error(path)
        return StoredVectors(space, paths, files, self._read_records(path, space, paths, files))

    def write(self, path: Path, space: VectorSpace, files: Mapping[str, str], records: Iterable[VectorRecord]) -> None:
        """See `Format.write`."""
        properties = space.model_dump(exclude_none=True) | {"preprocessing": space.preprocessing.model_dump_json()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name, texts in (("paths", files.values()), ("files", files.keys())):
                width = max(map(len, texts))
                with _member(archive, name, np.dtype(f"<U{width}"), (len(texts),)) as member:
                    for text in texts:
                        member.write(text.encode("utf-32-le").ljust(4 * width, b"\0"))
            with _member(archive, "vectors", np.dtype("<f4"), (len(files), *space.shape)) as member:
                for record in records:
                    member.write(np.asarray(record.vector, "<f4").tobytes())
            for name, value in properties.items():
                array = np.array(value, dtype=np.uint64 if name == "seed" else None)
                with _member(archive, name, array.dtype, array.shape) as member:
                    member.write(array.tobytes())

    def _read_records(
        self, path: Path, space: VectorSpace, paths: list[str], files: list[str]
    ) -> Iterator[VectorRecord]:
        size = 4 * math.prod(space.shape)
        with blame_file(path), zipfile.ZipFile(path) as archive, archive.open("vectors.npy") as member:
            _read_header(member)
            for path_text, file in zip(paths, files, strict=True):
                yield VectorRecord(path_text, np.frombuffer(member.read(size), "<f4").reshape(space.shape), file)


class Parquet:
    """The columns of `service.cli.vector_files.parquet`; the schema's metadata holds the vector space as JSON."""

    def __init__(self) -> None:
        """Imports pyarrow.

        Raises:
            VectorFileError: pyarrow is not installed.
        """
        import_pyarrow()

    def read(self, path: Path) -> StoredVectors:
        """See `Format.read`."""
        file, space = open_rows(path)
        paths: list[str] = []
        files: list[str] = []
        with file, blame_file(path):
            has_files = "file" in file.schema_arrow.names
            for batch in file.iter_batches(columns=["path", *(["file"] if has_files else [])]):
                paths += read_texts(batch, "path")
                files += read_texts(batch, "file") if has_files else [""] * len(batch)
        return StoredVectors(space, paths, files, read_rows(path))

    def write(self, path: Path, space: VectorSpace, files: Mapping[str, str], records: Iterable[VectorRecord]) -> None:
        """See `Format.write`."""
        write_rows(path, space, records)


class JsonLines:
    """One object per line with `path`, `file`, `vector`, `space` and its `properties`.

    So lines may be split, shuffled and merged freely. In files of earlier versions `space` has the properties.
    """

    def read(self, path: Path) -> StoredVectors:
        """See `Format.read`."""
        spaces: set[VectorSpace] = set()
        paths, files = [], []
        for line in self._lines(path):
            file = line.get("file", "")
            if not isinstance(line.get("path"), str) or not isinstance(file, str) or "vector" not in line:
                raise foreign_file_error(path)
            paths.append(line["path"])
            files.append(file)
            spaces.add(parse_space(path, line.get("properties", line.get("space"))))
        if len(spaces) != 1:
            raise VectorFileError(
                f"{path} holds {len(spaces)} vector spaces; vectors can only be added to a file that holds one"
            )
        [space] = spaces
        return StoredVectors(space, paths, files, self._read_records(path, space))

    def write(self, path: Path, space: VectorSpace, files: Mapping[str, str], records: Iterable[VectorRecord]) -> None:
        """See `Format.write`."""
        properties = space.model_dump(exclude_none=True)
        with path.open("wb") as file:
            for record in records:
                names = {"path": record.path, "file": record.file}
                line = {**names, "vector": record.vector, "space": space.space, "properties": properties}
                file.write(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))

    def _read_records(self, path: Path, space: VectorSpace) -> Iterator[VectorRecord]:
        for line in self._lines(path):
            with blame_file(path):
                vector = np.array(line["vector"], dtype=np.float32).reshape(space.shape)
            yield VectorRecord(line["path"], vector, line.get("file", ""))

    def _lines(self, path: Path) -> Iterator[dict[str, Any]]:
        with path.open("rb") as file:
            for text in file:
                try:
                    line = orjson.loads(text)
                except orjson.JSONDecodeError as error:
                    raise foreign_file_error(path) from error
                if not isinstance(line, dict):
                    raise foreign_file_error(path)
                yield line


FORMATS: dict[str, type[Format]] = {".npz": Npz, ".parquet": Parquet, ".jsonl": JsonLines}


def format_of(path: Path) -> Format:
    """The format for the suffix of `path`.

    Raises:
        VectorFileError: no format has this suffix, or a package that it needs is missing.
    """
    if path.suffix not in FORMATS:
        raise VectorFileError(f"{path} should end in one of {', '.join(FORMATS)}: the suffix decides the format")
    return FORMATS[path.suffix]()


def _to_texts(array: np.ndarray[Any, Any]) -> list[str]:
    """The texts of an array [n].

    Raises:
        ValueError: it holds something else.
    """
    if array.ndim != 1 or array.dtype.kind != "U":
        raise ValueError(f"{array.dtype} {array.shape} holds no texts")
    return [str(text) for text in array.tolist()]


def _member(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> BinaryIO:
    """A new array in an .npz, open for writing its bytes."""
    member = archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)
    npy.write_array_header_1_0(member, {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
    return member  # type: ignore[return-value]


def _read_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    npy.read_magic(member)
    return npy.read_array_header_1_0(member)
