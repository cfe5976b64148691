"""A whole benchmark, of an engine in name only beside torch itself."""

import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch

from model.benchmark import roofline, run
from model.benchmark.run import benchmark, engine_name
from model.benchmark.time_limit import TimeOver
from model.checkpoints.checkpoint import load
from model.engines.base import MeasuredMode, Precision
from tests.support.engines import FakeEngine, write_narrow
from tests.support.pretend_cuda import pretend_cuda

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small model: which figures there are does not depend on the size."""
    return write_narrow(tmp_path_factory.mktemp("narrow"))


@pytest.fixture
def engine(weights: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    monkeypatch.setattr(roofline, "PEAK_SECONDS", 0.01)
    monkeypatch.setitem(roofline.MATRIX, "cpu", 256)
    monkeypatch.setitem(roofline.COPIED_BYTES, "cpu", 1 << 20)
    checkpoint = load(weights)
    fake = FakeEngine(preferred_batch=1, lanes=2)
    update = {"config": checkpoint.config, "preprocessing": checkpoint.preprocessing}
    fake.info = fake.info.model_copy(update=update)
    return fake


def test_a_compiler_that_does_not_work_is_named_and_the_others_are_measured(
    engine: FakeEngine, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_nothing(graph, **options):
        def run(*arguments):
            raise RuntimeError("Failed to find C compiler\nand a page of advice")

        return run

    monkeypatch.setattr(torch, "compile", compile_nothing)
    result = benchmark(engine, weights, 0.01, compare=True, turns=1)
    assert result.left_out == {"torch.compile fp32": "Failed to find C compiler"}
    assert {figure.engine for figure in result.figures} == {"torch fp32", "torch eager fp32"}
    assert len(result.figures) == 4 * 2 + 4, "the baseline has one lane"


def test_each_size_is_reported_as_soon_as_it_is_measured(
    engine: FakeEngine, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    reports: list[tuple[int, list[str]]] = []
    result = benchmark(
        engine,
        weights,
        0.01,
        compare=True,
        max_autotune=True,
        turns=1,
        report=lambda so_far, figures: reports.append((len(so_far.figures), [figure.engine for figure in figures])),
    )
    together, one_lane, compiled = ["torch fp32", "torch eager fp32"], ["torch fp32"], ["torch.compile fp32"]
    names = [[], *[together, one_lane] * 4, *[compiled] * 4, ["torch.compile max-autotune fp32"], []]  # peaks: []
    assert [new for _, new in reports] == names
    assert [count for count, _ in reports] == [sum(map(len, names[: n + 1])) for n in range(len(names))]
    assert all(figure.floor_images_per_s for figure in result.figures)
    for figure in result.figures:  # the same peak for all, whenever they were measured
        flops = result.flops_per_image[f"{figure.operation} {figure.visible}"]
        assert result.peak_flops_per_s and figure.floor_images_per_s <= result.peak_flops_per_s / flops * (1 + 1e-9)
    tuned = result.figures[-1]
    assert (tuned.operation, tuned.visible, tuned.batch, tuned.lanes) == ("embed", 16, 1, 1)


def test_the_time_limit_leaves_out_what_is_not_reached_and_names_it(engine: FakeEngine, weights: Path) -> None:
    result = benchmark(engine, weights, 0.01, turns=1, deadline=time.monotonic())
    assert result.figures == () and result.left_out == {"torch fp32: 8 of 8 sizes": "the time limit was over"}


def test_a_compilation_ends_at_the_time_limit(
    engine: FakeEngine, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler catches all that is an Exception, and would go on."""
    reached: list[bool] = []

    def compile_slowly(graph, **options):
        def run(*arguments):
            reached.append(True)
            with suppress(Exception):
                raise TimeOver

        return run

    monkeypatch.setattr(torch, "compile", compile_slowly)
    given: list[float] = []
    monkeypatch.setattr(run, "measure", lambda *arguments: [])
    monkeypatch.setattr(run, "limit_time", lambda seconds: given.append(seconds) or nullcontext())
    deadline = time.monotonic() + 3600
    result = benchmark(engine, weights, 0.01, compare=True, turns=1, deadline=deadline)
    assert 3000 < given[0] < 3600
    assert reached and result.left_out == {"torch.compile fp32": "the time limit was over"}


def test_the_mode_of_torch_is_part_of_the_name() -> None:
    info = FakeEngine().info
    mode = MeasuredMode(mode="compile", images_per_s={}, left_out={})
    names = [engine_name(info), engine_name(info.model_copy(update={"torch": mode}))]
    assert names == ["torch fp32", "torch fp32, compile"]


def test_on_a_gpu_cuda_graphs_are_a_baseline(
    engine: FakeEngine, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU in the place of the GPU, from the baselines' precision to the recordings."""
    pretend_cuda(monkeypatch)
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    monkeypatch.setattr(run, "is_on_gpu", lambda info: True)
    result = benchmark(engine, weights, 0.01, compare=True, turns=1)
    names = {figure.engine for figure in result.figures}
    assert names == {"torch fp32", "torch eager fp32", "torch fp32, cuda graphs", "torch.compile fp32"}


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_every_precision_has_a_roofline(
    engine: FakeEngine, weights: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    monkeypatch.setattr(torch, "compile", lambda graph, **options: graph)
    engine.info = engine.info.model_copy(update={"precision": precision})
    result = benchmark(engine, weights, 0.01, compare=True, turns=1)
    assert {figure.engine for figure in result.figures} >= {f"torch {precision}", "torch eager fp32"}
    assert all(figure.times_floor is not None and figure.times_floor > 0 for figure in result.figures)


def test_without_a_comparison_there_is_no_roofline(engine: FakeEngine, weights: Path) -> None:
    result = benchmark(engine, weights, 0.01, turns=1)
    assert result.peak_flops_per_s is None and result.flops_per_image == {}
    assert [figure.times_floor for figure in result.figures] == [None] * 8
