"""What is said of a host, its steps, and the whole check as a shell command."""

import os
import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu_check import engines, steps
from gpu_check.context import Context, read_context
from gpu_check.host import NO_GPU, describe_host, find_unmet
from gpu_check.steps import run_step, tensorrt_distribution

from model.benchmark.roofline import Peak
from model.engines.base import TensorRTError
from tests.docker.gpu_check.conftest import rows
from tests.support.engines import FakeEngine

ROOT = Path(__file__).parents[3]


def test_what_is_missing_or_too_old_is_named() -> None:
    def installed(name: str) -> str:
        if name == "orjson":
            raise PackageNotFoundError(name)
        return {"torch": "2.10.0+cu130", "uvicorn": "0.50"}[name]

    found = list(find_unmet(["torch>=2.11,<2.15", "orjson>=3.10", "uvicorn[standard]>=0.36"], installed))
    assert found == ["torch is 2.10.0+cu130, but the project asks for >=2.11,<2.15", "orjson is missing"]


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_without_a_gpu_the_check_ends(on_gpu: Context, no_tools: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert describe_host(on_gpu) == NO_GPU
    assert on_gpu.report.failures() == ["host: device"]
    assert "nvidia-smi: not there" in (on_gpu.report.folder / "host.txt").read_text()


def test_the_gpu_is_named(on_gpu: Context, no_tools: None, monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="Pretend 9000", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert describe_host(on_gpu) == 0
    expected = "Pretend 9000, compute capability 9.0, 80 GiB, 132 multiprocessors, 2 visible"
    assert rows(on_gpu)["device"]["note"] == expected


def test_a_step_finds_the_same_surroundings(on_gpu: Context) -> None:
    again = read_context(on_gpu.to_environment())
    assert (again.work, again.backend, again.prove) == (on_gpu.work, "torch", False)
    assert again.report.folder == on_gpu.report.folder


class TestTensorRT:
    """Step e, only where the libraries were carried."""

    def test_without_it_the_step_says_so(self, on_gpu: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(steps, "tensorrt_distribution", lambda: None)
        assert run_step("e mae_tiny", on_gpu) == 0
        assert "neither torch-tensorrt nor torch-tensorrt-rtx" in rows(on_gpu)["TensorRT"]["note"]
        assert on_gpu.report.failures() == []

    @pytest.mark.slow
    def test_its_refusal_is_told_in_its_own_words(self, on_gpu: Context, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def build(settings):
            asked.append(settings.backend)
            raise TensorRTError("compute capability 9.0 is not supported")

        peak = Peak(device="cuda", precision="fp16", flops_per_s=8e14, bytes_per_s=3e12)
        monkeypatch.setattr(steps, "tensorrt_distribution", lambda: "torch-tensorrt-rtx")
        monkeypatch.setattr(steps, "find_spec", lambda name: name)
        monkeypatch.setattr(engines, "measure_peak", lambda device, precision: peak)
        monkeypatch.setattr(engines, "build", build)
        monkeypatch.setattr(
            engines, "Baseline", lambda checkpoint, *_: FakeEngine(preferred_batch=2, config=checkpoint.config)
        )
        run_step("e mae_tiny", on_gpu)
        assert asked == ["tensorrt"]
        row = rows(on_gpu)["mae_tiny: tensorrt fp16, CUDA graphs"]
        assert (row["step"], row["note"]) == ("e mae_tiny", "compute capability 9.0 is not supported")

    def test_it_is_found_under_either_name(self) -> None:
        def installed(name: str) -> str:
            if name != "torch-tensorrt-rtx":
                raise PackageNotFoundError(name)
            return "2.14.0"

        assert tensorrt_distribution(installed) == "torch-tensorrt-rtx"


@pytest.mark.live
def test_the_shell_command_starts_and_names_all_that_its_budget_leaves_out(tmp_path: Path) -> None:
    """With no time at all every step is left out; what each one does is shown by the other tests."""
    wheels = tmp_path / "wheels"
    (wheels / "wrk").mkdir(parents=True)
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "WHEELS": str(wheels), "BUDGET": "1", "PROVE": "1"}
    ended = subprocess.run(
        [ROOT / "docker/gpu_check.sh"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    table = (tmp_path / "out" / "table.txt").read_text()
    assert table in ended.stdout
    for step in ("host", "a mae_tiny", "a compile", "a autotune", "b service", "c tests", "d pretrain", "e mae_tiny"):
        assert f"\n{step:<12} the whole step" in table
    assert len(list((tmp_path / "out").iterdir())) <= 6
