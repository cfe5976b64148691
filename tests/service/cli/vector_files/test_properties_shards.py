"""Shards have names that are found again, in the order of their numbers."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.cli.vector_files import shard_store
from service.cli.vector_files.reading import read_vectors
from service.cli.vector_files.shard_store import ShardStore, shard_paths
from service.cli.vector_files.space import VectorRecord
from tests.service.cli.vector_files.test_journal import SPACE

OTHERS = ["part-1.parquet", "part-00001.parquet.tmp", "part-0000a.parquet", "xpart-00001.parquet", "notes.txt"]


@given(st.sets(st.integers(0, 10**7), max_size=12), st.sets(st.sampled_from(OTHERS)))
def test_names_of_shards(numbers: set[int], others: set[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in numbers:
            (folder / f"part-{number:05d}.parquet").touch()
        for other in others:
            (folder / other).touch()
        found = shard_paths(folder)
        assert list(found) == sorted(numbers)
        assert all(int(path.stem.removeprefix("part-")) == number for number, path in found.items())


RUNS = st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=8), st.booleans()), min_size=1, max_size=4)


@settings(max_examples=settings.default.max_examples // 3)
@given(RUNS)
def test_the_last_row_of_each_file_is_kept_whichever_runs_end_early(runs: list[tuple[list[int], bool]]) -> None:
    expected: dict[str, np.ndarray] = {}
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        patch.setattr(shard_store, "MAX_SHARD_ROWS", 3)
        folder, value = Path(name) / "vectors", 0
        for files, is_cut_off in [*runs, ([], False)]:
            with ShardStore(folder, False) as store:
                store.begin(SPACE)
                assert store.count == len(expected)
                for file in files:
                    value += 1
                    path, vector = f"/images/{file}.png", np.full(3, value, np.float32)
                    store.append(VectorRecord(f"{file}.png", vector, path, None, 1, value))
                    expected[path] = vector
                if not is_cut_off:
                    store.finish()
        if expected:
            read = read_vectors(folder)
            rows = [(record.file, record.vector) for record in read.records]
            assert read.count == len(rows) == len(expected)
            assert {file: list(vector) for file, vector in rows if vector is not None} == {
                file: list(vector) for file, vector in expected.items()
            }
