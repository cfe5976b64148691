"""Fixtures that tests of both packages share."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.engines.cuda import identity
from tests.support import costly

TESTS = Path(__file__).parent
collect_ignore = ["page"]  # their environment has a browser and none of our packages: make test-page

# Of torch, here and in every process that a test starts: threads that wait for work sleep. By default they spin, and
# with small models on few cores that takes more than the work does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# As `configure_torch` sets it: some test may multiply before an engine is built, and then it is too late.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
# Bytecode is kept, whatever the environment says: or else each of a hundred processes compiles our modules, and each
# worker rewrites the assertions of all tests.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# No test speaks TLS. Each HTTP client reads the certificates of this variable, or else a file of all authorities, which
# takes 30 ms of CPU per client.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(TESTS)
# Environments of some tests have no hypothesis: make test-tensorrt, and machines with a GPU.
if find_spec("hypothesis"):
    from tests.support.properties import register_profiles

    register_profiles()
WORKER = os.environ.get("PYTEST_XDIST_WORKER")
"""The name of this process if it is one of several that share the tests."""
if WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other workers have the other CPUs


# Which markers a test gets for where it lies and for the fixtures that it uses, whatever lies between.
FOLDER_MARKERS = {
    "live": "live",
    "clients": "live",
    "cluster": "live",
    "gpu": "live",
    "tensorrt": "converts",
    "benchmarks": "slow",
    "export": "slow",
    "index": "slow",
    "indexes": "slow",
}
FIXTURE_MARKERS = {
    "start_server": "live",
    "null_server": "live",
    "warm_cache": "converts",
    "openvino_engine": "converts",
    "narrow_graphs": "converts",
    "programs": "converts",
    "whole": "slow",  # a run of training
    "wheel": "live",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    fast = "only the tests that start no process and convert no model"
    parser.addoption("--fast", action="store_true", help=fast)
    group = parser.getgroup("gpu", "tests marked gpu")
    group.addoption(
        "--gpu-backend",
        choices=("cuda", "openvino", "torch"),
        help="what they run on: the GPU (default), or an engine on the CPU, to prove the tests themselves",
    )
    group.addoption("--gpu-batches", type=int, default=10_000, help="batches over which memory must stay flat")
    group.addoption("--gpu-no-compile", action="store_true", help="without torch.compile, which takes two minutes")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A fast run does not even import what lies in folders that it leaves out."""
    return True if config.getoption("--fast") and collection_path.name in FOLDER_MARKERS else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        folders = item.path.relative_to(TESTS).parts[:-1]
        names = [FOLDER_MARKERS.get(folder) for folder in folders]
        names += [FIXTURE_MARKERS.get(fixture) for fixture in getattr(item, "fixturenames", ())]
        names += ["slow"] if item.path.stem.startswith("test_properties_") else []  # many examples each
        for name in set(filter(None, names)):
            item.add_marker(name)
    if config.getoption("--fast"):
        costly.deselect_costly(config, items)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    # torch is imported only where there is a device
    there = bool(marked) and (config.getoption("--gpu-backend") or (identity.nvidia_device() and identity.cuda_works()))
    for item in marked:
        # compilers of engines warn of their own future; a first run on a new card should fail for numbers alone
        item.add_marker(pytest.mark.filterwarnings("default"))
        if not there:
            item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with costly.refuse_processes(not costly.is_costly(item)):
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def _cheap(request: pytest.FixtureRequest) -> Iterator[None]:
    """In a fast run nothing is converted. The first fixture of all, so that it sees the others."""
    with costly.refuse_conversions() if request.config.getoption("--fast") else nullcontext():
        yield


@pytest.fixture(scope="session")
def gpu_backend(request: pytest.FixtureRequest) -> str:
    """What tests marked gpu run on."""
    return str(request.config.getoption("--gpu-backend") or "cuda")


@pytest.fixture(scope="session")
def gpu_batches(request: pytest.FixtureRequest) -> int:
    """How many batches a test of endurance runs."""
    return int(request.config.getoption("--gpu-batches"))


@pytest.fixture(scope="session")
def golden() -> Mapping[str, np.ndarray]:
    """What the probe model says about eight photographs, written by another implementation (transformers' ViTMAE).

    images uint8 [8, 224, 224, 3]; mask uint8 [8, 196], 1 = removed, 49 kept; embed_cls and embed_mean float32 [8, 192]
    of whole images; reconstruction uint8 [8, 224, 224, 3] of all patches; loss float32 [8] over the removed ones.
    """
    with np.load(Path(__file__).parent / "data" / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def probe() -> Path:
    """A small trained model in our own format, the one that the golden numbers are of."""
    return Path(__file__).parent / "data" / "mae_probe_tiny.safetensors"


@pytest.fixture(scope="session")
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One engine cache for all tests of all workers, so that each model is converted once: the cache has locks."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if WORKER else own) / "engines"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def warm_cache(engine_cache: Path, probe: Path) -> Path:
    """The engine cache with the probe model's engine in float32, for processes that would have to convert it."""
    from model.engines.build import build
    from model.engines.settings import EngineSettings
    from tests.support.conversion import conversions_in_process

    with conversions_in_process():
        build(EngineSettings(engine_cache=engine_cache, weights=str(probe), precision="fp32"))
    return engine_cache


@pytest.fixture(scope="session")
def photographs() -> Mapping[str, Image.Image]:
    """Photographs that scikit-image ships, in the public domain or CC0, by name."""
    import skimage.data  # here: tests on a GPU run where it may be missing

    return {
        name: Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")
    }
