"""Step a on a GPU: the engine that serves beside torch eager, torch.compile and the roofline; with stand-ins."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from gpu_check import engines
from gpu_check.context import Context
from gpu_check.engines import AUTOTUNE, measure_compiled, measure_engine

from model.benchmark.roofline import Peak
from model.config import PRESETS
from model.engines.base import EngineBuildError, EngineInfo, ServedModel
from model.engines.parity import ParityError
from model.engines.settings import EngineSettings
from tests.docker.gpu_check.conftest import planned, rows
from tests.support.engines import FakeEngine

pytestmark = pytest.mark.slow

PEAK = Peak(device="cuda", precision="fp16", flops_per_s=8e14, bytes_per_s=3e12)


@dataclass
class Machine:
    """One with a GPU: what it was asked to build and to compile."""

    built: list[EngineSettings] = field(default_factory=list)
    baselines: list[tuple[EngineInfo, bool, dict[str, Any]]] = field(default_factory=list)
    refusal: Exception | None = None
    compiler_fails: bool = False
    device: str = "cuda"
    fallback: str | None = None

    def measure_peak(self, device: str, precision: str) -> Peak:
        assert (device, precision) == ("cuda", "fp16")
        return PEAK

    def build(self, settings: EngineSettings) -> ServedModel:
        self.built.append(settings)
        if self.refusal:
            raise self.refusal
        engine = FakeEngine(settings.max_batch or 0, lanes=2, config=PRESETS[settings.model or ""])
        engine.info = engine.info.model_copy(update={"device": self.device, "fallback": self.fallback})
        return ServedModel(engine)

    def make_baseline(self, checkpoint: Any, info: EngineInfo, compiled: bool, **options: Any) -> FakeEngine:
        self.baselines.append((info, compiled, options))

        def run(images: list[int]) -> None:
            if compiled and self.compiler_fails:
                raise RuntimeError("Failed to find C compiler\nand a page of advice")

        return FakeEngine(info.preferred_batch, before=run, config=checkpoint.config)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(engines, "measure_peak", machine.measure_peak)
    monkeypatch.setattr(engines, "build", machine.build)
    monkeypatch.setattr(engines, "Baseline", machine.make_baseline)
    return machine


def test_every_size_has_a_row_of_each_engine_beside_the_roofline(machine: Machine, on_gpu: Context) -> None:
    measure_engine("mae_tiny", on_gpu)
    found = rows(on_gpu)
    expected = {
        f"mae_tiny {operation} K={visible} batch {batch}: {engine}"
        for operation in ("embed", "reconstruct")
        for visible in (49, 196)
        for batch in (1, 2)
        for engine in ("torch fp16, CUDA graphs", "torch eager fp16")
    }
    assert set(planned(on_gpu)) == expected | {"peak of the device, fp16"}
    crowded = {name for name in found if " x 2 lanes: torch fp16, CUDA graphs" in name}
    assert set(found) == set(planned(on_gpu)) | crowded and len(crowded) == 4
    for name in expected:
        assert found[name]["per_s"] > 0 and found[name]["p50_ms"] > 0 and not found[name]["failed"]
    # A whole image of ViT-Tiny takes 2.2 GFLOP by timm's count with a multiply-add as two: no peak allows more.
    roofline = found["mae_tiny embed K=196 batch 2: torch eager fp16"]["roofline_per_s"]
    assert 1000 < roofline < PEAK.flops_per_s / 2.2e9


def test_the_service_would_build_this_engine(machine: Machine, on_gpu: Context) -> None:
    measure_engine("mae_tiny", on_gpu)
    (settings,) = machine.built
    assert (settings.backend, settings.precision, settings.cuda_graphs, settings.max_batch) == (
        "torch",
        "fp16",
        True,
        2,
    )
    ((info, compiled, _),) = machine.baselines
    assert (info.device, info.precision, compiled) == ("cuda", "fp16", False)


@pytest.mark.parametrize("refusal", [EngineBuildError("no room\non the GPU"), ParityError("cosine 0.4")])
def test_an_engine_that_cannot_be_built_fails_in_its_own_words_and_torch_eager_is_measured(
    machine: Machine, on_gpu: Context, refusal: Exception
) -> None:
    machine.refusal = refusal
    measure_engine("mae_tiny", on_gpu)
    failed = [row for row in rows(on_gpu).values() if row["failed"]]
    assert [row["note"] for row in failed] == [str(refusal).splitlines()[0]]
    assert sum("torch eager" in name for name in rows(on_gpu)) == 8
    assert on_gpu.report.failures() == ["a mae_tiny: mae_tiny: torch fp16, CUDA graphs"]


def test_an_engine_on_the_cpu_is_no_figure_of_the_gpu(machine: Machine, on_gpu: Context) -> None:
    machine.device, machine.fallback = "cpu", "there is no NVIDIA device"
    measure_engine("mae_tiny", on_gpu)
    failed = [row for row in rows(on_gpu).values() if row["failed"]]
    assert [row["note"] for row in failed] == ["it serves on cpu: there is no NVIDIA device"]
    assert not any("CUDA graphs" in name and row["per_s"] for name, row in rows(on_gpu).items())


def test_weights_are_packaged_or_written_once(on_gpu: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_check.context import weights_of

    from model.benchmark import weights

    written = []

    def write(preset: str, folder: Any) -> Any:
        written.append(preset)
        path = folder / f"{preset}.safetensors"
        path.write_bytes(b"")
        return path

    monkeypatch.setattr(weights, "write_random_weights", write)
    assert weights_of("mae_tiny", on_gpu).parent.name == "weights"
    assert weights_of("mae_base", on_gpu) == weights_of("mae_base", on_gpu) == on_gpu.work / "mae_base.safetensors"
    assert written == ["mae_base"]


def test_each_graph_is_compiled_for_one_size_and_says_how_long_that_took(machine: Machine, on_gpu: Context) -> None:
    measure_compiled(on_gpu)
    assert [(info.model, compiled, options) for info, compiled, options in machine.baselines] == [
        (preset, True, {"dynamic": False, "mode": None}) for preset in ("mae_tiny", "mae_small") * 2
    ]
    found = rows(on_gpu)
    assert list(found) == planned(on_gpu) and len(found) == 4
    assert all("compiled in" in row["note"] and row["per_s"] > 0 for row in found.values())
    assert next(iter(found)) == "mae_tiny embed K=196 batch 2: torch.compile default fp16"


def test_autotuning_is_for_the_most_telling_size_alone(machine: Machine, on_gpu: Context) -> None:
    measure_compiled(on_gpu, AUTOTUNE)
    assert [options["mode"] for _, _, options in machine.baselines] == ["max-autotune-no-cudagraphs"]
    assert list(rows(on_gpu)) == ["mae_tiny embed K=196 batch 2: torch.compile max-autotune-no-cudagraphs fp16"]


def test_without_a_compiler_the_reason_is_told(machine: Machine, on_gpu: Context) -> None:
    machine.compiler_fails = True
    measure_compiled(on_gpu)
    assert {row["note"] for row in rows(on_gpu).values()} == {"left out: Failed to find C compiler"}
    assert on_gpu.report.failures() == []
