"""`mae embed` to a folder of shards: archives, failures, changes, and runs that are cut off."""

import io
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet
import pytest

from tests.service.cli.conftest import Mae
from tests.support.embed_runs import NAMES, make_copies, start_and_store


def rows(folder: str = "out") -> dict[str, object]:
    """The vector of each path, or its error; no path may come twice."""
    table = pyarrow.parquet.read_table(folder)
    paths = table["path"].to_pylist()
    assert [path for path, times in Counter(paths).items() if times > 1] == []
    values = zip(table["vector"].to_pylist(), table["error"].to_pylist(), strict=True)
    return dict(zip(paths, (error if vector is None else vector for vector, error in values), strict=True))


def test_shards_hold_the_golden_vectors(mae: Mae, squares: Path, golden: Mapping[str, np.ndarray]) -> None:
    assert mae("embed", squares, "-o", "out/") == (0, "", "mae: 8 embedded, 0 already stored, 0 skipped: out/\n")
    table = pyarrow.parquet.read_table("out")
    assert table["path"].to_pylist() == NAMES
    assert table["file"].to_pylist() == [os.path.realpath(name) for name in NAMES]
    assert table["size"].to_pylist() == [os.stat(name).st_size for name in NAMES]
    np.testing.assert_allclose(np.stack(table["vector"].to_numpy()), golden["embed_mean"], atol=1e-4)
    assert mae("embed", squares, "-o", "out.npz").code == 0
    with np.load("out.npz") as arrays:
        np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), arrays["vectors"])
    assert mae("embed", squares, "-o", "out") == (0, "", "mae: 0 embedded, 8 already stored, 0 skipped: out\n")


def test_a_failure_is_a_row_until_it_is_tried_again(mae: Mae, squares: Path) -> None:
    shutil.move("squares/3.png", "whole.png")
    Path("squares/3.png").write_text("no image")
    result = mae("embed", squares, "-o", "out/")
    assert result.code == 1 and result.err.splitlines()[-1] == "mae: 7 embedded, 0 already stored, 1 skipped: out/"
    found = rows()
    assert list(found) == NAMES and str(found["squares/3.png"]).startswith("squares/3.png is no image that can be read")
    again = mae("embed", squares, "-o", "out/")
    assert again.code == 1 and again.err.splitlines() == [
        "mae: 0 embedded, 7 already stored, 0 skipped: out/",
        "mae: 1 had failed in an earlier run: --retry-failed tries them again",
    ]
    shutil.move("whole.png", "squares/3.png")
    assert mae("embed", squares, "-o", "out/", "--retry-failed").code == 0
    assert sorted(rows()) == NAMES and not any(isinstance(value, str) for value in rows().values())


def test_what_was_changed_is_embedded_again_and_what_is_gone_is_said(mae: Mae, squares: Path) -> None:
    assert mae("embed", squares, "-o", "out/").code == 0
    before = rows()
    shutil.copyfile("squares/0.png", "squares/1.png")
    os.utime("squares/2.png", (1, 1))
    Path("squares/7.png").unlink()
    assert mae("embed", squares, "-o", "out/").err == "mae: 0 embedded, 7 already stored, 0 skipped: out/\n"
    result = mae("embed", squares, "-o", "out/", "--changed")
    assert result.code == 0 and result.err.splitlines() == [
        "mae: 2 embedded, 5 already stored, 0 skipped: out/",
        "mae: 2 were changed, and are embedded anew; "
        f"1 are gone, and keep their rows: {Path('squares/7.png').absolute()}",
    ]
    after = rows()
    assert after["squares/1.png"] == before["squares/0.png"] != before["squares/1.png"]
    assert {path for path in before if after[path] != before[path]} == {"squares/1.png"} and len(after) == 8
    result = mae("embed", squares, "-o", "out/", "--changed")
    assert "0 embedded, 7 already stored" in result.err and "0 were changed" in result.err


def test_archives_buckets_and_folders_give_the_same_vectors(mae: Mae, squares: Path) -> None:
    bucket = fsspec.filesystem("memory")
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        archive.add(squares)
    Path("x.tgz").write_bytes(target.getvalue())
    bucket.put("squares", "/squares-of-a-test/", recursive=True)
    try:
        assert mae("embed", squares, "x.tgz", "memory://squares-of-a-test/", "-o", "out/").code == 0
    finally:
        bucket.rm("/squares-of-a-test", recursive=True)
    found = rows()
    assert len(found) == 24
    for name in NAMES:
        vectors = [vector for path, vector in found.items() if path.endswith(Path(name).name)]
        assert len(vectors) == 3 and vectors[0] == vectors[1] == vectors[2]


def test_a_killed_run_loses_and_doubles_no_row(mae: Mae, squares: Path, environment: Mapping[str, str]) -> None:
    make_copies(squares, each=12)
    Path("many/broken.png").write_text("no image")
    process = start_and_store("out/", environment, records=40)
    process.kill()
    process.communicate()
    result = mae("embed", "many", "-o", "out/")
    embedded, stored = (int(part.split()[0]) for part in result.err.split("mae: ")[-1].split(", ")[:2])
    assert result.code == 1 and (embedded, stored) == (56, 40)
    assert mae("embed", "many", "-o", "whole/").code == 1
    assert rows() == rows("whole") and len(rows()) == 97
    assert os.listdir("out") == ["part-00000.parquet"]


@pytest.mark.live
def test_processes_decode_what_threads_decode(mae: Mae, squares: Path) -> None:
    Path("squares/broken.png").write_text("no image")
    assert mae("embed", squares, "-o", "threads/", "--decode-processes", "0").code == 1
    assert mae("embed", squares, "-o", "processes/", "--decode-processes", "2").code == 1
    assert rows("processes") == rows("threads") and len(rows("threads")) == 9


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-o", "out.npz", "--changed"], "--changed needs an output that is a folder, such as vectors/"),
        (["-o", "out.jsonl", "--retry-failed"], "--retry-failed needs an output that is a folder"),
        (["-o", "nowhere/out/"], "there is no folder nowhere"),
        (["-o", "squares/0.png/"], "squares/0.png is a file"),
        (["nothing://bucket/", "-o", "out/"], "nothing:// is no kind of address that fsspec knows"),
    ],
)
def test_what_cannot_be_is_one_sentence(mae: Mae, squares: Path, arguments: list[str], sentence: str) -> None:
    result = mae("embed", squares, *arguments)
    assert result.code == 2 and sentence in result.err and result.err.count("\n") == 1
    assert os.listdir() == ["squares"]
