"""Which backend serves, on machines of all kinds; stand-ins for what is there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.engines import backend as module
from model.engines.backend import NO_TENSORRT, choose_backend
from model.engines.base import BackendChoice, EngineBuildError
from model.engines.cuda import identity

IDLE = "there is an NVIDIA device, but torch cannot use it"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    def pretend(nvidia: bool = False, cuda: bool = False, tensorrt: str | None = None, openvino: bool = True) -> None:
        monkeypatch.setattr(identity, "DEVICES", (tmp_path if nvidia else tmp_path / "none",))
        monkeypatch.setattr(identity, "cuda_works", lambda: cuda)
        monkeypatch.setattr(identity, "installed_distribution", lambda: tensorrt)
        monkeypatch.setattr(module, "find_spec", lambda name: object() if openvino or name != "openvino" else None)

    return pretend


GPU = {"nvidia": True, "cuda": True}
RTX = "torch-tensorrt-rtx"


@pytest.mark.parametrize(
    ("there", "wanted", "expected"),
    [
        # no GPU
        ({}, "auto", BackendChoice("openvino", "cpu")),
        ({}, "openvino", BackendChoice("openvino", "cpu")),
        ({}, "torch", BackendChoice("torch", "cpu")),
        ({"tensorrt": RTX}, "auto", BackendChoice("openvino", "cpu")),
        ({"openvino": False}, "auto", BackendChoice("torch", "cpu", "the package openvino is not installed")),
        # a GPU
        ({**GPU, "tensorrt": RTX}, "auto", BackendChoice("tensorrt", "cuda")),
        ({**GPU, "tensorrt": "torch-tensorrt"}, "auto", BackendChoice("tensorrt", "cuda")),
        ({**GPU, "tensorrt": RTX}, "tensorrt", BackendChoice("tensorrt", "cuda")),
        ({**GPU, "tensorrt": RTX}, "torch", BackendChoice("torch", "cuda")),
        ({**GPU, "tensorrt": RTX}, "openvino", BackendChoice("openvino", "cpu")),
        (GPU, "auto", BackendChoice("torch", "cuda", NO_TENSORRT)),
        (GPU, "torch", BackendChoice("torch", "cuda")),
        # a GPU that torch cannot use
        ({"nvidia": True, "tensorrt": RTX}, "auto", BackendChoice("openvino", "cpu", IDLE)),
        ({"nvidia": True, "tensorrt": RTX, "openvino": False}, "auto", BackendChoice("torch", "cpu", IDLE)),
        ({"nvidia": True}, "torch", BackendChoice("torch", "cpu", IDLE)),
    ],
)
def test_what_serves(machine: Callable[..., None], there: Any, wanted: Any, expected: BackendChoice) -> None:
    machine(**there)
    assert choose_backend(wanted) == expected


@pytest.mark.parametrize(
    ("there", "wanted", "message"),
    [
        ({"openvino": False}, "openvino", "BACKEND=openvino, but the package openvino is not installed"),
        ({"tensorrt": RTX}, "tensorrt", "BACKEND=tensorrt, but there is no NVIDIA device"),
        ({"tensorrt": RTX, "nvidia": True}, "tensorrt", f"BACKEND=tensorrt, but {IDLE}"),
        (GPU, "tensorrt", "BACKEND=tensorrt, but neither torch-tensorrt nor torch-tensorrt-rtx is installed"),
    ],
)
def test_what_was_named_is_not_replaced(machine: Callable[..., None], there: Any, wanted: Any, message: str) -> None:
    machine(**there)
    with pytest.raises(EngineBuildError) as error:
        choose_backend(wanted)
    assert str(error.value) == message


def test_torch_is_asked_about_a_gpu_only_where_there_is_one(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    monkeypatch.setattr(identity, "cuda_works", lambda: pytest.fail("importing torch takes seconds"))
    assert choose_backend("auto") == BackendChoice("openvino", "cpu")
    assert choose_backend("torch") == BackendChoice("torch", "cpu")
