"""A folder of shards, after runs that end at any moment."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from service.cli.errors import VectorFileError
from service.cli.vector_files import shard_store
from service.cli.vector_files.reading import is_vector_file, read_vectors
from service.cli.vector_files.shard_store import ShardStore
from service.cli.vector_files.space import VectorRecord, VectorSpace
from tests.service.cli.vector_files.test_journal import SPACE

TOKENS = SPACE.model_copy(update={"pool": "tokens", "grid": (1, 2)})


@pytest.fixture(autouse=True)
def _three_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of three rows."""
    monkeypatch.setattr(shard_store, "MAX_SHARD_ROWS", 3)


def record(number: int, value: float = 0.0, error: str | None = None) -> VectorRecord:
    vector = None if error else np.full(3, number + value, np.float32)
    return VectorRecord(f"{number}.png", vector, f"/photographs/{number}.png", error, 1000 + number, 5_000_000 + number)


def run(folder: Path, records: Sequence[VectorRecord], overwrite: bool = False, space: VectorSpace = SPACE) -> int:
    """A run that is cut off; returns how many files had rows when it began."""
    with ShardStore(folder, overwrite) as store:
        store.begin(space)
        count = store.count
        for each in records:
            store.append(each)
    return count


def finish(folder: Path, records: Sequence[VectorRecord] = (), overwrite: bool = False) -> None:
    with ShardStore(folder, overwrite) as store:
        store.begin(SPACE)
        for each in records:
            store.append(each)
        store.finish()


def rows(folder: Path) -> list[tuple[str, float | None]]:
    """Path and first number of each row, as pyarrow reads the folder."""
    table = pyarrow.parquet.read_table(folder)
    return [
        (path, vector[0] if vector else None)
        for path, vector in zip(table["path"].to_pylist(), table["vector"].to_pylist(), strict=True)
    ]


def expected(numbers: Iterator[int] | range) -> list[tuple[str, float]]:
    return [(f"{number}.png", float(number)) for number in numbers]


def test_the_columns_are_as_documented(tmp_path: Path) -> None:
    finish(tmp_path / "out", [record(0), record(1, error="broken"), record(2), record(3)._replace(modified=None)])
    assert sorted(os.listdir(tmp_path / "out")) == ["part-00000.parquet", "part-00001.parquet"]
    table = pyarrow.parquet.read_table(tmp_path / "out")
    assert {field.name: str(field.type) for field in table.schema} == {
        "path": "string",
        "file": "string",
        "vector": "fixed_size_list<element: float>[3]",
        "error": "string",
        "size": "int64",
        "modified": "timestamp[us, tz=UTC]",
    }
    assert table["vector"].to_pylist() == [[0.0] * 3, None, [2.0] * 3, [3.0] * 3]
    assert table["error"].to_pylist() == [None, "broken", None, None]
    assert table["size"].to_pylist() == [1000, 1001, 1002, 1003]
    assert [moment and moment.timestamp() for moment in table["modified"].to_pylist()] == [
        5.0,
        5.000001,
        5.000002,
        None,
    ]
    assert VectorSpace.model_validate_json(table.schema.metadata[b"mae-serve"]) == SPACE


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    written = [record(0), record(1, error="broken"), record(2), record(3)._replace(size=None, modified=None)]
    finish(tmp_path / "out", written)
    assert is_vector_file(tmp_path / "out") and not is_vector_file(tmp_path)
    file = read_vectors(tmp_path / "out")
    assert (file.space, file.count) == (SPACE, 4)
    for found, given in zip(file.records, written, strict=True):
        assert found._replace(vector=None) == given._replace(vector=None)
        assert (found.vector is None) == (given.vector is None)
        assert found.vector is None or np.array_equal(found.vector, given.vector)


def test_tokens_are_lists_of_lists(tmp_path: Path) -> None:
    tokens = np.arange(6, dtype=np.float32).reshape(2, 3)
    failed = record(1, error="broken")
    with ShardStore(tmp_path / "out", False) as store:
        store.begin(TOKENS)
        for each in (failed, record(2)._replace(vector=tokens), failed._replace(file="other")):
            store.append(each)
        store.finish()
    assert pyarrow.parquet.read_table(tmp_path / "out")["vector"].to_pylist() == [None, tokens.tolist(), None]
    found = [found.vector for found in read_vectors(tmp_path / "out").records]
    assert found[0] is None and found[2] is None and found[1] is not None
    np.testing.assert_array_equal(found[1], tokens)


@pytest.mark.parametrize("first", range(9))
def test_no_row_is_lost_or_doubled_wherever_a_run_is_cut(tmp_path: Path, first: int) -> None:
    run(tmp_path / "out", [record(number) for number in range(first)])
    assert run(tmp_path / "out", []) == first
    finish(tmp_path / "out", [record(number) for number in range(first, 8)])
    assert rows(tmp_path / "out") == expected(range(max(8, first)))
    assert sorted(os.listdir(tmp_path / "out")) == [f"part-{number:05}.parquet" for number in range(3)]


def test_an_end_between_a_shard_and_its_journal_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace_and_end(source: Path, target: Path) -> None:
        rename(source, target)
        raise KeyboardInterrupt

    rename = os.replace
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", replace_and_end)
        run(tmp_path / "out", [record(number) for number in range(5)])
    assert rows(tmp_path / "out") == expected(range(3))
    finish(tmp_path / "out", [record(3)])
    assert rows(tmp_path / "out") == expected(range(4))


def test_a_new_row_replaces_the_old_one(tmp_path: Path) -> None:
    finish(tmp_path / "out", [record(number) for number in range(7)])
    finish(tmp_path / "out", [record(1, 0.5), record(6, 0.5), record(7)])
    assert sorted(rows(tmp_path / "out")) == sorted(
        [*expected(i for i in (0, 2, 3, 4, 5, 7)), ("1.png", 1.5), ("6.png", 6.5)]
    )
    assert sorted(os.listdir(tmp_path / "out")) == [f"part-{number:05}.parquet" for number in (0, 1, 3)]


def test_a_row_may_be_replaced_twice_in_one_shard(tmp_path: Path) -> None:
    run(tmp_path / "out", [record(0), record(1)])
    finish(tmp_path / "out", [record(0, 0.5), record(2)])
    assert rows(tmp_path / "out") == [("1.png", 1.0), ("0.png", 0.5), ("2.png", 2.0)]


@pytest.mark.parametrize("cut", range(5))
def test_a_run_that_replaces_rows_may_be_cut(tmp_path: Path, cut: int) -> None:
    """The next run keeps the later row, even if the earlier one is not replaced again."""
    finish(tmp_path / "out", [record(number) for number in range(4)])
    changed = [record(number, 0.5) for number in range(4)]
    run(tmp_path / "out", changed[:cut])
    with ShardStore(tmp_path / "out", False) as store:
        assert store.count == 4
    finish(tmp_path / "out", changed[cut:])
    assert rows(tmp_path / "out") == [(f"{number}.png", number + 0.5) for number in range(4)]


def test_a_replacement_leaves_the_shards_alone_until_it_is_complete(tmp_path: Path) -> None:
    finish(tmp_path / "out", [record(number) for number in range(5)])
    run(tmp_path / "out", [record(number) for number in range(10, 14)], overwrite=True)
    assert rows(tmp_path / "out") == expected(range(5))
    with pytest.raises(VectorFileError, match="belongs to a run with --overwrite"):
        run(tmp_path / "out", [])
    assert run(tmp_path / "out", [], overwrite=True) == 4
    finish(tmp_path / "out", [record(14)], overwrite=True)
    assert rows(tmp_path / "out") == expected(range(10, 15))


@pytest.mark.parametrize("renames", range(1, 7))
def test_a_replacement_that_is_cut_is_completed_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    finish(tmp_path / "out", [record(number) for number in range(10)])
    rename, left = os.replace, [renames]

    def replace_or_end(source: Path, target: Path) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", replace_or_end)
        finish(tmp_path / "out", [record(number) for number in range(20, 28)], overwrite=True)
    overwrite = renames < 4  # three shards, then the mark that they are complete
    finish(tmp_path / "out", [record(number) for number in range(20, 28)] if overwrite else [], overwrite)
    assert rows(tmp_path / "out") == expected(range(20, 28))


def test_a_replacement_of_another_space_begins_anew(tmp_path: Path) -> None:
    other = SPACE.model_copy(update={"pool": "cls"})
    run(tmp_path / "out", [record(number) for number in range(4)], overwrite=True, space=other)
    assert run(tmp_path / "out", [], overwrite=True) == 0


def test_another_space_is_refused(tmp_path: Path) -> None:
    finish(tmp_path / "out", [record(0)])
    with pytest.raises(VectorFileError, match="was made with pool=mean, and this run would make pool=cls"):
        run(tmp_path / "out", [], space=SPACE.model_copy(update={"pool": "cls"}))


def test_a_foreign_or_damaged_shard_is_refused_by_name(tmp_path: Path) -> None:
    finish(tmp_path / "out", [record(0)])
    (tmp_path / "out" / "part-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(VectorFileError, match=r"part-00001\.parquet is damaged"):
        run(tmp_path / "out", [])


def test_two_runs_do_not_write_one_folder(tmp_path: Path) -> None:
    with ShardStore(tmp_path / "out", False), pytest.raises(VectorFileError, match="another run is writing"):
        ShardStore(tmp_path / "out", False)


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    with ShardStore(tmp_path / "out", overwrite=False):
        pass
    assert list(tmp_path.iterdir()) == []
