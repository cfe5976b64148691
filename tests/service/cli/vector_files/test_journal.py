"""The journal of an unfinished run, and differences between vector spaces."""

import resource
from pathlib import Path

import numpy as np
import pytest

from model.config import Preprocessing
from service.cli.errors import VectorFileError, describe_error
from service.cli.vector_files.journal import Header, Journal
from service.cli.vector_files.space import VectorRecord, VectorSpace

SPACE = VectorSpace(
    space="mae_tiny@0123456789ab:fp32:and-so-on",
    model="mae_tiny@0123456789ab",
    precision="fp32",
    computes="fp32",
    heads=3,
    image_size=224,
    preprocessing=Preprocessing(),
    pool="mean",
    normalize=False,
    keep=1.0,
    dim=3,
    grid=(14, 14),
)
RECORDS = [
    VectorRecord(name, np.arange(3, dtype=np.float32) + index, f"/photographs/{name}")
    for index, name in enumerate(["a.png", "ä/b.png", "c.png"])
]


def write_journal(path: Path) -> list[int]:
    """Writes a journal of `RECORDS`; returns the file's length after the header and after each record."""
    with Journal(path) as journal:
        journal.begin(Header(space=SPACE, replaces=False))
        sizes = [path.stat().st_size]
        for record in RECORDS:
            journal.append(record)
            sizes.append(path.stat().st_size)
    return sizes


def read_paths(path: Path) -> list[str]:
    """The paths of a journal's records, whose vectors must be those of `RECORDS`."""
    with Journal(path) as journal:
        records = list(journal.records())
        assert {record.file: record.path for record in records} == journal.files
    for record, expected in zip(records, RECORDS, strict=False):
        assert (record.path, record.file) == (expected.path, expected.file)
        np.testing.assert_array_equal(record.vector, expected.vector)
    return [record.path for record in records]


def test_records_come_back(tmp_path: Path) -> None:
    write_journal(tmp_path / "journal")
    assert read_paths(tmp_path / "journal") == ["a.png", "ä/b.png", "c.png"]


def test_a_full_disk_is_told_with_the_name_of_the_journal(tmp_path: Path) -> None:
    path, limits = tmp_path / "journal", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError) as failed, Journal(path) as journal:
            journal.begin(Header(space=SPACE, replaces=False))
            journal.append(RECORDS[0])
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
            journal.append(RECORDS[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert describe_error(failed.value) == f"{path}: File too large"
    assert read_paths(path) == ["a.png"]


def test_a_tail_that_was_cut_anywhere_is_dropped_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = write_journal(path)
    whole = path.read_bytes()
    for length in range(sizes[1], sizes[3]):
        path.write_bytes(whole[:length])
        with Journal(path) as journal:
            kept = 2 if length >= sizes[2] else 1
            assert journal.files == {record.file: record.path for record in RECORDS[:kept]}
            for record in RECORDS[kept:]:
                journal.append(record)
        assert path.read_bytes() == whole


def test_a_damaged_record_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = write_journal(path)
    damaged = bytearray(path.read_bytes())
    damaged[sizes[3] - 1] ^= 1
    path.write_bytes(damaged)
    assert read_paths(path) == ["a.png", "ä/b.png"]


def test_a_header_that_was_cut_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sizes = write_journal(path)
    path.write_bytes(path.read_bytes()[: sizes[0] - 1])
    with Journal(path) as journal:
        assert journal.header is None


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text("{}\n")
    with pytest.raises(VectorFileError, match="is not a journal"):
        Journal(path)
    assert path.read_text() == "{}\n"


def test_the_journal_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    header = Header(space=SPACE, replaces=False).model_dump_json().replace('"version":3', '"version":2')
    (tmp_path / "journal").write_text(header + "\n")
    with pytest.raises(VectorFileError, match="is not a journal of this version of mae embed: delete it"):
        Journal(tmp_path / "journal")


@pytest.mark.parametrize("missing", [{"space"}, {"space", "computes", "whiten"}])
def test_a_file_of_an_earlier_version_is_not_added_to(missing: set[str]) -> None:
    """Such a file may hold vectors of images whose colour profiles were ignored."""
    old = VectorSpace.model_validate(SPACE.model_dump(exclude=missing))
    with pytest.raises(VectorFileError, match=r"out\.npz was made by an earlier version.*--overwrite"):
        old.require(SPACE, Path("out.npz"))


@pytest.mark.parametrize(
    "other",
    [
        {"model": "mae_tiny@ba9876543210"},
        {"precision": "bf16"},
        {"computes": "emulated bf16"},
        {"heads": 12},
        {"image_size": 448},
        {"preprocessing": Preprocessing(filter="box")},
        {"pool": "cls"},
        {"normalize": True},
        {"keep": 0.5},
        {"seed": 1},
        {"positions": (1, 2)},
        {"space": "mae_tiny@0123456789ab:fp32:in-other-colours"},
    ],
)
def test_another_space_is_refused_by_name(other: dict[str, object]) -> None:
    SPACE.require(SPACE.model_copy(), Path("out.npz"))
    [name] = other
    with pytest.raises(VectorFileError, match=rf"out\.npz was made with {name}="):
        SPACE.require(SPACE.model_copy(update=other), Path("out.npz"))
