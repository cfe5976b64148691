"""A real server with an engine that answers at once, for the tests of this folder."""

from collections.abc import Iterator

import pytest

from model.config import PRESETS
from model.engines.base import EngineInfo
from service.benchmark.processes import ServerProcess, serve_null_engine
from service.settings import load_settings
from tests.support.engines import fake_info


@pytest.fixture(scope="session")
def info() -> EngineInfo:
    return fake_info(PRESETS["mae_tiny"], lanes=2, preferred_batch=4)


@pytest.fixture(scope="session")
def null_server(info: EngineInfo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    file = tmp_path_factory.mktemp("info") / "info.json"
    file.write_text(info.model_dump_json())
    with serve_null_engine(load_settings(decode_threads=1), file) as server:
        yield server
