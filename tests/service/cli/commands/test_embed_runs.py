"""Runs of `mae embed` whose output exists, or is being written, and runs that are cut off."""

import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from service.cli.vector_files.journal import Journal
from service.cli.vector_files.space import VectorRecord
from tests.service.cli.conftest import Mae
from tests.support.embed_runs import NAMES, make_copies, start_and_store


@pytest.mark.parametrize("suffix", ["npz", "parquet", "jsonl"])
def test_an_output_is_added_to_and_never_mixed(mae: Mae, squares: Path, suffix: str) -> None:
    output = Path(f"out.{suffix}")
    assert mae("embed", *NAMES[4:], "-o", output).code == 0
    for name in NAMES[4:]:
        Path(name).write_text("embedded already, so never read again")
    assert mae("embed", squares, "-o", output) == (0, "", f"mae: 4 embedded, 4 already stored, 0 skipped: {output}\n")
    before = output.read_bytes()
    refused = mae("embed", squares, "-o", output, "--pool", "cls")
    assert refused == (
        2,
        "",
        f"mae: {output.absolute()} was made with pool=mean, and this run would make pool=cls: "
        "choose another output, or replace it with --overwrite\n",
    )
    assert output.read_bytes() == before and not Path(f"{output}.partial").exists()


def test_an_output_is_replaced_if_that_is_asked_for(mae: Mae, squares: Path) -> None:
    assert mae("embed", squares, "-o", "out.npz").code == 0
    assert mae("embed", *NAMES[:2], "-o", "out.npz", "--pool", "cls", "--overwrite").code == 0
    with np.load("out.npz") as out:
        assert out["paths"].tolist() == NAMES[:2] and out["pool"] == "cls"


def test_a_killed_run_goes_on_where_it_was(mae: Mae, squares: Path, environment: Mapping[str, str]) -> None:
    make_copies(squares, each=6)
    assert mae("embed", "many", "-o", "whole.npz").code == 0
    process = start_and_store("out.npz", environment, records=8)
    process.kill()
    process.communicate()
    assert not Path("out.npz").exists()
    for image in sorted(Path("many").iterdir())[:8]:
        image.unlink()
        image.write_text("done before, so never read again")
    result = mae("embed", "many", "-o", "out.npz")
    embedded, stored = (int(part.split()[0]) for part in result.err.removeprefix("mae: ").split(", ")[:2])
    assert result.code == 0 and (embedded, stored) == (40, 8)
    assert Path("out.npz").read_bytes() == Path("whole.npz").read_bytes()
    assert not Path("out.npz.partial").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_work(
    mae: Mae, squares: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    make_copies(squares, each=6)
    append, stored = Journal.append, []

    def interrupt(journal: Journal, record: VectorRecord) -> None:
        append(journal, record)
        stored.append(record)
        if len(stored) == 3:
            signal.raise_signal(number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the suite runs under nohup
    try:
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "append", interrupt)
            result = mae("embed", "many", "-o", "out.jsonl")
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.code == 130 and "interrupted" in result.err and "Traceback" not in result.err
    assert 3 <= len(stored) < 48
    assert mae("embed", "many", "-o", "out.jsonl", "--pool", "cls").code == 2  # of another pool than what is kept
    result = mae("embed", "many", "-o", "out.jsonl")
    assert result.code == 0 and f"{48 - len(stored)} embedded, {len(stored)} already stored" in result.err
    assert len(Path("out.jsonl").read_text().splitlines()) == 48


def test_two_runs_do_not_write_one_output(mae: Mae, squares: Path, environment: Mapping[str, str]) -> None:
    make_copies(squares, each=12)
    process = start_and_store("out.npz", environment, records=5)
    try:
        result = mae("embed", squares, "-o", "out.npz")
    finally:
        process.kill()
        process.communicate()
    assert result.code == 2 and "another run is writing" in result.err
