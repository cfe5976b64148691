"""The probe model and a convolutional one behind both engines, built once."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import Checkpoint, save
from model.config import PRESETS, Preprocessing
from model.engines.base import Engine
from model.engines.build import EngineSpec, build
from model.families import autoencoder
from tests.model.engines.pretend_cuda import pretend_cuda


@pytest.fixture(scope="session")
def openvino_engine(engine_cache: Path, probe: Path) -> Engine:
    return build(EngineSpec(engine_cache, str(probe), backend="openvino", lanes=2))


@pytest.fixture(scope="session")
def torch_engine(engine_cache: Path, probe: Path) -> Engine:
    return build(EngineSpec(engine_cache, str(probe), backend="torch"))


@pytest.fixture(scope="session", params=["openvino", "torch"])
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(f"{request.param}_engine")
    return found


@pytest.fixture(scope="session")
def resnet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh resnet_tiny."""
    torch.manual_seed(0)
    model = autoencoder(PRESETS["resnet_tiny"])
    path = tmp_path_factory.mktemp("resnet") / "resnet.safetensors"
    save(path, Checkpoint(model.config, Preprocessing(), "mae-serve", dict(model.state_dict())))
    return path


@pytest.fixture(scope="session", params=["openvino", "torch"])
def resnet_engine(request: pytest.FixtureRequest, engine_cache: Path, resnet_weights: Path) -> Engine:
    lanes = 2 if request.param == "openvino" else 1
    return build(EngineSpec(engine_cache, weights=str(resnet_weights), backend=request.param, lanes=lanes))


@pytest.fixture(scope="session")
def golden_patches(golden: Mapping[str, np.ndarray]) -> np.ndarray:
    """The golden photographs cut up, uint8 [8, 196, 768]."""
    squares = golden["images"].reshape(8, 14, 16, 14, 16, 3)
    return np.ascontiguousarray(squares.transpose(0, 1, 3, 2, 4, 5)).reshape(8, 196, 768)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.cuda, as far as we use it, on the processor."""
    pretend_cuda(monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for operations so small, a second thread costs more than it does
    yield
    torch.set_num_threads(threads)
