"""What is asked of a driver and of installed packages, with stand-ins for both."""

import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from model.engines.base import EngineBuildError, TensorRTError
from model.engines.cuda import identity
from model.engines.cuda.identity import Gpu, installed_distribution, nvidia_device, tensorrt_runtime, this_gpu


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One that answers; the list says what it was asked."""
    asked: list[str] = []
    for name, answer in (("nvmlInit", None), ("nvmlSystemGetDriverVersion", "580.65.06"), ("nvmlShutdown", None)):
        monkeypatch.setattr(pynvml, name, lambda name=name, answer=answer: asked.append(name) or answer)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    return asked


def test_a_card_is_named_by_its_driver(driver: list[str]) -> None:
    assert this_gpu() == Gpu("NVIDIA H100 80GB HBM3", "9.0", "580.65.06")
    assert driver == ["nvmlInit", "nvmlSystemGetDriverVersion", "nvmlShutdown"]


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlSystemGetDriverVersion"])
def test_a_driver_that_does_not_answer_stops_the_build(
    driver: list[str], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    monkeypatch.setattr(pynvml, call, fail)
    with pytest.raises(EngineBuildError, match="the driver's version cannot be read: Unknown"):
        this_gpu()
    assert driver.count("nvmlInit") == driver.count("nvmlShutdown")


@pytest.mark.parametrize(
    ("installed", "found"),
    [
        ([], None),
        (["torch"], None),
        (["torch-tensorrt"], "torch-tensorrt"),
        (["torch-tensorrt-rtx"], "torch-tensorrt-rtx"),
    ],
)
def test_either_distribution_is_found(monkeypatch: pytest.MonkeyPatch, installed: list[str], found: str | None) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return "2.14.0"

    monkeypatch.setattr(identity, "version", version)
    assert installed_distribution() == found


@pytest.mark.parametrize(("distribution", "name"), identity.DISTRIBUTIONS.items())
def test_each_distribution_has_a_runtime(monkeypatch: pytest.MonkeyPatch, distribution: str, name: str) -> None:
    module: Any = SimpleNamespace()
    monkeypatch.setitem(sys.modules, name, module)
    assert tensorrt_runtime(distribution) is module


@pytest.mark.parametrize("error", [ImportError("no module"), OSError("libnvinfer.so.10: cannot open")])
def test_a_runtime_that_cannot_be_imported_is_tensorrts_failure(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(identity, "import_module", fail)
    with pytest.raises(TensorRTError, match=f"torch-tensorrt is installed, but tensorrt cannot be imported: {error}"):
        tensorrt_runtime("torch-tensorrt")


def test_a_driver_shows_itself_by_a_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(identity, "DEVICES", (tmp_path / "nvidiactl", tmp_path / "dxg"))
    assert not nvidia_device()
    (tmp_path / "dxg").touch()
    assert nvidia_device()
