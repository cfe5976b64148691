"""Commands whose engine hangs: they say so and end, and a run can be continued."""

from pathlib import Path
from typing import NoReturn

import pyarrow.parquet
import pytest
from PIL import Image

from model.engines import build as building
from model.engines.base import ServedModel
from service.inference import watchdog
from tests.service.cli.conftest import run
from tests.support.engines import FakeEngine
from tests.support.queueing import Gate

COUNT, LAST = 12, 110
"""Number of images, and the shade of the last one, whose batch does not return."""


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Images in the folder `greys`, and an engine that holds up the batch of the last one until the gate is opened."""
    monkeypatch.chdir(tmp_path)
    Path("greys").mkdir()
    for number in range(COUNT):
        Image.new("L", (32, 32), 10 * number).save(f"greys/{number:02}.png")
    gate = Gate()

    def before(images: list[int]) -> None:
        if LAST in images:
            gate(images)

    def exit_now(code: int) -> NoReturn:
        """Here the process cannot end at once, and need not: the gate is opened."""
        raise SystemExit(code)

    # With these seconds per image a batch of one hangs after two beats: one that waits for the interpreter does not.
    monkeypatch.setattr(building, "build", lambda *_: ServedModel(FakeEngine(4, before=before), image_seconds=0.01))
    monkeypatch.setattr(watchdog, "HANG_LEAST_S", 0.0)
    monkeypatch.setattr("service.server.exit_now", exit_now)
    return gate


@pytest.mark.slow
def test_mae_embed_says_that_a_batch_hangs_and_continues_later(gate: Gate, capfd: pytest.CaptureFixture[str]) -> None:
    result = run(capfd, "embed", "greys", "-o", "out/")
    gate.opened.set()
    assert result.code == 2
    done, hang = result.err.splitlines()
    assert done.endswith(" embedded so far; the same command continues the run")
    stored = int(done.split()[1])  # the group that hangs may be decoded before others
    assert hang.startswith("mae: lane 0 hangs: a batch of 4 for embed has not returned after ")
    again = run(capfd, "embed", "greys", "-o", "out/").err
    assert again == f"mae: {COUNT - stored} embedded, {stored} already stored, 0 skipped: out/\n"
    table = pyarrow.parquet.read_table("out")
    assert table["path"].to_pylist() == [f"greys/{number:02}.png" for number in range(COUNT)]
    assert [vector[0] for vector in table["vector"].to_pylist()] == [10 * number for number in range(COUNT)]


@pytest.mark.slow
def test_a_command_with_the_pipeline_of_the_service_says_that_a_batch_hangs(
    gate: Gate, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(capfd, "reconstruct", f"greys/{COUNT - 1}.png", "-o", "out.png")
    gate.opened.set()
    assert result.code == 2 and not Path("out.png").exists()
    assert "mae: lane 0 hangs: a batch of 1 for reconstruct has not returned after " in result.err
