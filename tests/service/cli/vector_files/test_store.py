"""The output after runs that end at a bad moment."""

from pathlib import Path

import numpy as np
import pytest

from service.cli.errors import VectorFileError
from service.cli.vector_files.space import VectorRecord, VectorSpace
from service.cli.vector_files.store import VectorStore
from tests.service.cli.vector_files.test_journal import RECORDS, SPACE


def run(output: Path, records: list[VectorRecord], overwrite: bool = False, space: VectorSpace = SPACE) -> list[str]:
    """A run that ends before it is complete; returns the paths that were stored when it began."""
    with VectorStore(output, overwrite) as store:
        store.begin(space)
        stored = list(store.files.values())
        for record in records:
            store.append(record)
    return stored


def paths_in(output: Path) -> list[str]:
    with np.load(output) as arrays:
        assert [str(file) for file in arrays["files"]] == [f"/photographs/{path}" for path in arrays["paths"]]
        assert len(arrays["vectors"]) == len(arrays["paths"])
        return [str(path) for path in arrays["paths"]]


def finish(output: Path, overwrite: bool = False) -> list[str]:
    with VectorStore(output, overwrite) as store:
        store.begin(SPACE)
        store.finish()
    return paths_in(output)


def test_a_replacement_leaves_the_output_alone_until_it_is_complete(tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    run(output, RECORDS[:2])
    assert finish(output) == ["a.png", "ä/b.png"]
    assert run(output, RECORDS[2:], overwrite=True) == []
    assert paths_in(output) == ["a.png", "ä/b.png"]
    with pytest.raises(VectorFileError, match="belongs to a run with --overwrite"):
        run(output, [])
    assert run(output, [], overwrite=True) == ["c.png"]
    assert finish(output, overwrite=True) == ["c.png"]


def test_a_replacement_of_another_kind_begins_anew(tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    run(output, RECORDS, overwrite=True, space=SPACE.model_copy(update={"pool": "cls"}))
    assert run(output, [], overwrite=True) == []


def test_an_end_between_output_and_clearing_away_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.npz"
    run(output, RECORDS[:2])
    with monkeypatch.context() as patch:
        patch.setattr(VectorStore, "_delete_journal", lambda store: None)
        assert finish(output) == ["a.png", "ä/b.png"]
    assert run(output, RECORDS[2:]) == ["a.png", "ä/b.png"]
    assert finish(output) == ["a.png", "ä/b.png", "c.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_an_end_while_the_output_is_written_leaves_it_whole(tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    run(output, RECORDS)
    (tmp_path / "out.npz.partial" / "out.npz").write_bytes(b"half of it")
    assert finish(output) == [record.path for record in RECORDS]
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    with VectorStore(tmp_path / "out.npz", overwrite=False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_the_output_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.npz").symlink_to("out.npz")
    run(tmp_path / "link.npz", RECORDS)
    assert finish(tmp_path / "link.npz") == [record.path for record in RECORDS]
    assert (tmp_path / "link.npz").is_symlink() and (tmp_path / "out.npz").is_file()
