"""A whole benchmark, of an engine in name only beside torch itself."""

from pathlib import Path

import pytest
import torch

from model.benchmark import roofline
from model.benchmark.run import benchmark
from model.checkpoints.checkpoint import load
from model.engines.base import Precision
from tests.support.engines import FakeEngine

pytestmark = pytest.mark.slow


@pytest.fixture
def engine(probe: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    monkeypatch.setattr(roofline, "PEAK_SECONDS", 0.01)
    monkeypatch.setitem(roofline.MATRIX, "cpu", 256)
    monkeypatch.setitem(roofline.COPIED_BYTES, "cpu", 1 << 20)
    checkpoint = load(probe)
    found = FakeEngine(preferred_batch=1, lanes=2)
    facts = {"config": checkpoint.config, "preprocessing": checkpoint.preprocessing}
    found.info = found.info.model_copy(update=facts)
    return found


def test_a_compiler_that_does_not_work_is_named_and_the_others_are_measured(
    engine: FakeEngine, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_nothing(graph, **options):
        def run(*arguments):
            raise RuntimeError("Failed to find C compiler\nand a page of advice")

        return run

    monkeypatch.setattr(torch, "compile", compile_nothing)
    found = benchmark(engine, probe, 0.01, compare=True, turns=1)
    assert found.left_out == {"torch.compile fp32": "Failed to find C compiler"}
    assert {figure.engine for figure in found.figures} == {"torch fp32", "torch eager fp32"}
    assert len(found.figures) == 4 * 2 + 4, "the rival has one lane"


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_every_precision_has_a_floor(
    engine: FakeEngine, probe: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    engine.info = engine.info.model_copy(update={"precision": precision})
    found = benchmark(engine, probe, 0.01, compare=True, turns=1)
    assert {figure.engine for figure in found.figures} >= {f"torch {precision}", "torch eager fp32"}
    assert all(figure.times_floor is not None and figure.times_floor > 0 for figure in found.figures)


def test_alone_there_is_no_floor(engine: FakeEngine, probe: Path) -> None:
    found = benchmark(engine, probe, 0.01, turns=1)
    assert found.peak_flops_per_s is None and found.flops_per_image == {}
    assert [figure.times_floor for figure in found.figures] == [None] * 8
