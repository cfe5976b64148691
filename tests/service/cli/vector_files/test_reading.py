"""Damaged and foreign files of vectors: each is refused by one sentence, whatever the library beneath raises."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from service.cli.errors import VectorFileError
from service.cli.vector_files.formats import format_of
from service.cli.vector_files.parquet import SPACE_KEY
from service.cli.vector_files.reading import read_vectors
from service.cli.vector_files.shard_store import ShardStore
from tests.service.cli.vector_files.test_journal import RECORDS, SPACE

SUFFIXES = (".npz", ".parquet", ".jsonl")


def write(path: Path) -> bytes:
    format_of(path).write(path, SPACE, {record.file: record.path for record in RECORDS}, RECORDS)
    return path.read_bytes()


def read(path: Path) -> list[tuple[str, list[float]]]:
    return [(record.path, record.vector.ravel().tolist()) for record in read_vectors(path).records]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_cut_or_damaged_anywhere_is_read_or_refused_by_our_own_error(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"vectors{suffix}"
    whole = write(path)
    refused = 0
    for place in range(0, len(whole), len(whole) // 40):
        for damaged in (whole[:place], whole[:place] + bytes((whole[place] ^ 0xFF,)) + whole[place + 1 :]):
            path.write_bytes(damaged)
            try:
                read(path)
            except VectorFileError:
                refused += 1
    assert refused > 40


def rewrite_npz(path: Path, **arrays: np.ndarray) -> None:
    with np.load(path) as stored:
        np.savez(path, **{**dict(stored), **arrays})


def change_members(path: Path, place: int, value: int) -> None:
    """Changes a byte of each entry of the archive's directory (APPNOTE.TXT, 4.3.12)."""
    data = bytearray(path.read_bytes())
    entry = data.find(b"PK\x01\x02")
    while entry >= 0:
        data[entry + place] = value
        entry = data.find(b"PK\x01\x02", entry + 4)
    path.write_bytes(data)


def damage_vectors(path: Path) -> None:
    """Inverts the last byte of the last vector, by which a checksum is wrong."""
    vectors = b"".join(record.vector.tobytes() for record in RECORDS)
    damaged = vectors[:-1] + bytes((vectors[-1] ^ 0xFF,))
    content = path.read_bytes()
    assert content.count(vectors) == 1
    path.write_bytes(content.replace(vectors, damaged))


def write_npy(path: Path) -> None:
    np.save(out := io.BytesIO(), np.zeros(3))
    path.write_bytes(out.getvalue())


FOREIGN_NPZ: dict[str, Callable[[Path], object]] = {
    "encrypted members": lambda path: change_members(path, 8, 1),
    "an unknown compression": lambda path: change_members(path, 10, 99),
    "a wrong checksum of the vectors": damage_vectors,
    "one array": write_npy,
    "numbers as paths": lambda path: rewrite_npz(path, paths=np.arange(len(RECORDS))),
    "one path": lambda path: rewrite_npz(path, paths=np.array("a.png")),
    "a width of zero": lambda path: rewrite_npz(path, dim=np.array(0)),
    "no paths": lambda path: path.write_bytes(b"PK\5\6" + bytes(18)),
}


@pytest.mark.parametrize("name", FOREIGN_NPZ)
def test_an_npz_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "vectors.npz"
    write(path)
    FOREIGN_NPZ[name](path)
    with pytest.raises(VectorFileError, match="is damaged or was not written by mae embed"):
        read(path)


def rewrite_parquet(path: Path, change: Callable[[pyarrow.Table], pyarrow.Table]) -> None:
    pyarrow.parquet.write_table(change(pyarrow.parquet.read_table(path)), path)


def replace_column(name: str, values: pyarrow.Array) -> Callable[[pyarrow.Table], pyarrow.Table]:
    return lambda table: table.set_column(table.schema.get_field_index(name), name, values)


NUMBERS = pyarrow.array(range(len(RECORDS)))
FOREIGN_PARQUET: dict[str, Callable[[pyarrow.Table], pyarrow.Table]] = {
    "no vectors": lambda table: table.drop_columns(["vector"]),
    "no paths": lambda table: table.drop_columns(["path"]),
    "numbers as vectors": replace_column("vector", NUMBERS),
    "numbers as paths": replace_column("path", NUMBERS),
    "numbers as files": replace_column("file", NUMBERS),
    "a null as file": replace_column("file", pyarrow.array([None] * len(RECORDS), pyarrow.string())),
    "another space": lambda table: table.replace_schema_metadata({SPACE_KEY: json.dumps([1])}),
    "no space": lambda table: table.replace_schema_metadata(None),
}


@pytest.mark.parametrize("name", FOREIGN_PARQUET)
def test_a_parquet_file_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "vectors.parquet"
    write(path)
    rewrite_parquet(path, FOREIGN_PARQUET[name])
    with pytest.raises(VectorFileError, match="is damaged or was not written by mae embed"):
        read(path)


def test_a_shard_of_another_kind_is_refused(tmp_path: Path) -> None:
    (folder := tmp_path / "shards").mkdir()
    write(folder / "part.parquet")
    shard = (folder / "part.parquet").rename(folder / "part-00000.parquet")
    rewrite_parquet(shard, lambda table: table.drop_columns(["file"]))
    with pytest.raises(VectorFileError, match="is damaged or was not written by mae embed"):
        ShardStore(folder, overwrite=False)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_not_there_is_not_called_damaged(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / f"vectors{suffix}")
