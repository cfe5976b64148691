"""A check of a GPU, as its steps see it, with stand-ins for whatever needs one."""

from pathlib import Path
from typing import Any

import pytest
from gpu_check import context as module
from gpu_check.context import Context, Numbers
from gpu_check.report import Report

OF_A_CHECK = module.GPU
FEW = Numbers(
    models=("mae_tiny", "mae_small"),
    batches=(2, 1),
    seconds=0.002,
    workers=(8, 0),
    connections=(4, 2),
    load_seconds=0.1,
    endurance_batches=7,
    training=(("mae_tiny", 2),),
    training_seconds=0.02,
    log_steps=1,
)


@pytest.fixture
def on_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A check that takes this machine for one with a GPU, with numbers for a test."""
    monkeypatch.setattr(module, "GPU", FEW)
    monkeypatch.delenv("MAE_ENGINE_CACHE", raising=False)
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    report = Report(out)
    report.begin()
    return Context(report, work, "torch", prove=False)


def rows(context: Context) -> dict[str, dict[str, Any]]:
    """The rows by what they are of."""
    return {entry["what"]: entry for entry in context.report.read() if "what" in entry}


def planned(context: Context) -> list[str]:
    """What the steps had planned."""
    return [name for entry in context.report.read() for name in entry.get("planned", ())]
