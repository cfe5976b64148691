"""The probe model and a convolutional one behind both engines, built once."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.engines.base import Engine
from model.engines.build import build
from model.engines.settings import EngineSettings
from tests.support.conversion import conversions_in_process
from tests.support.engines import write_fresh, write_narrow, write_resnet
from tests.support.pretend_cuda import pretend_cuda


@pytest.fixture(scope="session")
def openvino_engine(engine_cache: Path, probe: Path) -> Engine:
    spec = EngineSettings(engine_cache=engine_cache, weights=str(probe), backend="openvino", precision="fp32", lanes=2)
    with conversions_in_process():
        return build(spec).engine


@pytest.fixture(scope="session")
def torch_engine(engine_cache: Path, probe: Path) -> Engine:
    return build(EngineSettings(engine_cache=engine_cache, weights=str(probe), backend="torch")).engine


ENGINES = [pytest.param("openvino", marks=pytest.mark.converts), "torch"]


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(f"{request.param}_engine")
    return found


@pytest.fixture(scope="session")
def resnet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh resnet_tiny."""
    return write_resnet(tmp_path_factory.mktemp("resnet"))


@pytest.fixture(scope="session", params=ENGINES)
def resnet_engine(request: pytest.FixtureRequest, engine_cache: Path, resnet_weights: Path) -> Engine:
    lanes = 2 if request.param == "openvino" else 1
    spec = EngineSettings(
        engine_cache=engine_cache, weights=str(resnet_weights), backend=request.param, precision="fp32", lanes=lanes
    )
    with conversions_in_process():
        return build(spec).engine


@pytest.fixture(scope="session")
def narrow_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model that is quickly converted."""
    return write_narrow(tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of NARROW, as the setting WEIGHTS names them. No test changes the file."""
    return str(write_fresh(tmp_path_factory.mktemp("weights") / "narrow.safetensors"))


@pytest.fixture(scope="session")
def narrow_graphs(engine_cache: Path, narrow_weights: Path) -> Path:
    """Its entry in the cache, in float32."""
    spec = EngineSettings(
        engine_cache=engine_cache,
        weights=str(narrow_weights),
        backend="openvino",
        precision="fp32",
        lanes=1,
        max_batch=4,
    )
    with conversions_in_process():
        return engine_cache / str(build(spec).info.entry)


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory, photographs: Mapping[str, Image.Image]) -> Path:
    """Thirty pieces of photographs."""
    folder = tmp_path_factory.mktemp("crops")
    for number in range(30):
        image = list(photographs.values())[number % 4]
        left, top = 20 * (number // 4), 10 * (number // 4)
        image.crop((left, top, left + 200, top + 200)).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture(scope="session")
def golden_patches(golden: Mapping[str, np.ndarray]) -> np.ndarray:
    """The golden photographs cut up, uint8 [8, 196, 768]."""
    squares = golden["images"].reshape(8, 14, 16, 14, 16, 3)
    return np.ascontiguousarray(squares.transpose(0, 1, 3, 2, 4, 5)).reshape(8, 196, 768)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.cuda, as far as we use it, on the CPU."""
    pretend_cuda(monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for operations so small, a second thread costs more than it does
    yield
    torch.set_num_threads(threads)
