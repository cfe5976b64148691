"""The probe model behind both engines, built once."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from model.engines.base import Engine
from model.engines.build import EngineSpec, build


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
def golden_patches(golden: Mapping[str, np.ndarray]) -> np.ndarray:
    """The golden photographs cut up, uint8 [8, 196, 768]."""
    squares = golden["images"].reshape(8, 14, 16, 14, 16, 3)
    return np.ascontiguousarray(squares.transpose(0, 1, 3, 2, 4, 5)).reshape(8, 196, 768)
