"""Tests on a real GPU: `pytest -m gpu`. Where there is none they are skipped, and say so.

`--gpu-backend openvino` (or torch) runs the same tests on the CPU, which proves the tests and not the GPU. On a GPU
without TensorRT all tests run on torch alone, and those of a second backend are skipped with that reason.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.engines.base import Engine, gather_visible
from model.engines.build import build
from model.engines.cuda import identity
from model.engines.job import ModelSpec
from model.engines.reference import load_model, reference_engine
from model.engines.settings import EngineSettings
from tests.live.conftest import start_server  # noqa: F401  (a fixture)

HALF_BARS = {"cosine": 0.9999, "pixels": 2}
"""What half precision must keep of an answer, whoever shares the batch."""


@pytest.fixture(scope="session")
def on_gpu(gpu_backend: str) -> bool:
    """Whether a GPU is what is tested."""
    return gpu_backend == "cuda"


@pytest.fixture(scope="session")
def backends(gpu_backend: str) -> tuple[str, ...]:
    """The engines under test, the one that serves by default first: torch alone on a GPU without TensorRT."""
    if gpu_backend != "cuda":
        return (gpu_backend,)
    return ("tensorrt", "torch") if identity.installed_distribution() else ("torch",)


@pytest.fixture(scope="session")
def built(engine_cache: Path, probe: Path, on_gpu: bool) -> Callable[..., Engine]:
    """Builds an engine of the probe model, once for each (backend, precision)."""
    engines: dict[tuple[str, str], Engine] = {}

    def make(backend: str, precision: str) -> Engine:
        key = backend, precision
        if key not in engines:
            lanes = None if on_gpu else 2
            found = build(
                EngineSettings(
                    engine_cache=engine_cache,
                    weights=str(probe),
                    backend=backend,
                    precision=precision,
                    lanes=lanes,
                    compile_timeout_s=0,  # test_torch_modes.py compiles, once
                )  # type: ignore[arg-type]
            ).engine
            assert found.info.backend == backend, found.info.fallback
            assert found.info.device.startswith("cuda") == on_gpu, found.info.device
            engines[key] = found
        return engines[key]

    return make


@pytest.fixture(scope="session")
def engine(built: Callable[..., Engine], backends: tuple[str, ...], on_gpu: bool) -> Engine:
    """The one that serves by default, on a GPU in half precision."""
    return built(backends[0], "fp16" if on_gpu else "fp32")


@pytest.fixture(scope="session")
def oracle(probe: Path) -> Engine:
    """Eager float32 on the CPU."""
    return reference_engine(*load_model(ModelSpec(str(probe))))


@pytest.fixture(scope="session")
def crowd(golden: Mapping[str, np.ndarray]) -> Callable[[int], np.ndarray]:
    """So many different images, uint8 [count, 196, 768]: the golden photographs, turned and inverted and shifted."""
    squares = golden["images"].reshape(8, 14, 16, 14, 16, 3)
    photographs = squares.transpose(0, 1, 3, 2, 4, 5).reshape(8, 196, 768)
    eight = (photographs, 255 - photographs, photographs[:, ::-1], 255 - photographs[:, ::-1])

    def make(count: int) -> np.ndarray:
        many = [np.roll(part, 3 * turn, axis=1) for turn in range(-(-count // 32)) for part in eight]
        return np.ascontiguousarray(np.concatenate(many)[:count])

    return make


def places(visible: int, count: int) -> np.ndarray:
    """Different ones for each image, int32 [count, visible]."""
    generator = np.random.default_rng(visible)
    return np.stack([np.sort(generator.permutation(196)[:visible]) for _ in range(count)]).astype(np.int32)


def call(engine: Engine, operation: str, patches: np.ndarray, visible_indices: np.ndarray, lane: int = 0) -> Any:
    """A tuple of arrays; `patches` are all N of each image."""
    if operation == "reconstruct":
        return engine.reconstruct(lane, patches, visible_indices)
    return (getattr(engine, operation)(lane, gather_visible(patches, visible_indices), visible_indices),)


def require_alike(found: Any, expected: Any, centre: np.ndarray, what: object) -> None:
    """Fails unless each image's answer is the expected one: cosine of vectors after `centre` is subtracted, pixels.

    Args:
        found: what `call` returned.
        expected: the same of another engine, or of the same images in other company.
        centre: the mean vectors over many images (of reconstruct: not looked at).
        what: for the message.
    """
    assert [(a.shape, a.dtype) for a in found] == [(a.shape, a.dtype) for a in expected], what
    assert np.isfinite(found[-1]).all(), what
    if len(found) == 1:
        cosine = centred_cosine(found[0], expected[0], centre)
        assert cosine >= HALF_BARS["cosine"], (what, cosine)
    else:
        apart = np.abs(found[0].astype(int) - expected[0]).max()
        assert apart <= HALF_BARS["pixels"], (what, apart)
        assert np.allclose(found[1], expected[1], rtol=0.02, atol=0.02 * expected[1].mean()), what


def centred_cosine(found: np.ndarray, expected: np.ndarray, centre: np.ndarray) -> float:
    """The worst over images of the cosine of [B, rows, D], all rows of an image as one vector, less `centre`."""
    a, b = ((x.astype(np.float64) - centre).reshape(len(x), -1) for x in (found, expected))
    return float(((a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


def on_all_lanes(engine: Engine, work: Callable[[int], None]) -> None:
    """Runs `work(lane)` in one thread a lane, which begin together; what one raises is raised."""
    start = threading.Barrier(engine.info.lanes)

    def begin(lane: int) -> None:
        start.wait(60)
        work(lane)

    with ThreadPoolExecutor(engine.info.lanes) as pool:
        list(pool.map(begin, range(engine.info.lanes)))


@pytest.fixture
def device_bytes(on_gpu: bool) -> Iterator[Callable[[], int]]:
    """Reads the memory in use: of the whole GPU, so of whatever allocates there; resident, on the CPU."""
    if not on_gpu:
        yield lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
        return
    import torch

    def used() -> int:
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return total - free

    yield used
