"""Torch on the GPU: every mode keeps the numbers, the choice is measured and kept, and the second start is warm."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from model.engines.base import Engine, EngineInfo, TorchMode
from model.engines.build import build
from model.engines.cuda.torch_compile import reason_not_to_compile
from model.engines.settings import EngineSettings
from model.masking import PAD
from service.inference.executor import stack_padded
from tests.gpu.conftest import call, places, require_alike

pytestmark = pytest.mark.gpu
Crowd = Callable[[int], np.ndarray]
MODES: tuple[TorchMode, ...] = get_args(TorchMode)
MOST = 12


@pytest.fixture(scope="module")
def compiles(request: pytest.FixtureRequest) -> bool:
    """Whether the mode that compiles is tested, too."""
    return not request.config.getoption("--gpu-no-compile")


@pytest.fixture(scope="module")
def settings(on_gpu: bool, compiles: bool, probe: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineSettings:
    """Of torch on the GPU, with a cache of its own."""
    if not on_gpu:
        pytest.skip("torch has modes on a GPU alone")
    folder = tmp_path_factory.mktemp("torch")
    settings = EngineSettings(
        engine_cache=folder, weights=str(probe), backend="torch", precision="fp16", max_batch=MOST
    )
    return settings if compiles else settings.model_copy(update={"compile_timeout_s": 0})


@pytest.fixture(scope="module")
def first(settings: EngineSettings) -> EngineInfo:
    """The engine of the first start, which has measured the modes."""
    return build(settings).info


@pytest.fixture(scope="module")
def engine_in(settings: EngineSettings, first: EngineInfo) -> Callable[[TorchMode], Engine]:
    """Builds the engine in a mode, once for each."""
    engines: dict[TorchMode, Engine] = {}

    def make(mode: TorchMode) -> Engine:
        assert first.torch is not None
        if mode in first.torch.left_out:
            pytest.skip(f"{mode} is left out here: {first.torch.left_out[mode]}")
        if mode not in engines:
            # A choice that was kept is followed: so each mode is served for which a choice is written.
            (kept,) = settings.engine_cache.glob("torch-mode-*.json")
            before = kept.read_text()
            kept.write_text(first.torch.model_copy(update={"mode": mode}).model_dump_json())
            try:
                engines[mode] = build(settings).engine
            finally:
                kept.write_text(before)
        info = engines[mode].info
        assert info.torch is not None and info.torch.mode == mode
        return engines[mode]

    return make


def test_the_choice_is_measured_and_explained(first: EngineInfo, compiles: bool) -> None:
    assert first.device == "cuda" and first.torch is not None
    assert {*first.torch.images_per_s, *first.torch.left_out} == {*MODES}
    assert {"eager", "cuda graphs"} <= {*first.torch.images_per_s}
    for rates in first.torch.images_per_s.values():
        assert {*rates} == {1, MOST} and min(rates.values()) > 0
    reason = reason_not_to_compile()
    assert ("compile" in first.torch.left_out) == (reason is not None or not compiles), first.torch.left_out


def test_half_precision_takes_one_attention_kernel(first: EngineInfo) -> None:
    """Which one depends on the card; `math` would mean that attention is several kernels, and memory for all scores."""
    assert {*first.attention} == {"encoder", "encoder_padded", "decoder"}
    import torch  # here: tests on the CPU are collected without it

    if torch.cuda.get_device_capability() >= (8, 0):
        assert "math" not in first.attention.values(), first.attention


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("visible", [49, 196])
def test_every_batch_size_in_every_mode(
    engine_in: Callable[[TorchMode], Engine], oracle: Engine, crowd: Crowd, mode: TorchMode, visible: int
) -> None:
    engine, images, visible_indices = engine_in(mode), crowd(MOST), places(visible, MOST)
    for operation in ("embed", "tokens", "reconstruct"):
        expected = call(oracle, operation, images, visible_indices)
        centre = expected[0].mean(axis=0) if operation != "reconstruct" else np.zeros(1)
        for size in range(1, MOST + 1):
            found = call(engine, operation, images[:size], visible_indices[:size], size % engine.info.lanes)
            require_alike(found, [array[:size] for array in expected], centre, (mode, operation, visible, size))


@pytest.mark.parametrize("mode", MODES)
def test_different_shares_of_patches_in_one_batch(
    engine_in: Callable[[TorchMode], Engine], oracle: Engine, crowd: Crowd, mode: TorchMode
) -> None:
    engine, images = engine_in(mode), crowd(3)
    alone = [places(count, 1)[0] for count in (196, 49, 147)]
    visible_indices = stack_padded(alone, PAD)
    for operation in ("embed", "reconstruct"):
        found = call(engine, operation, images, visible_indices)
        for row, where in enumerate(alone):
            expected = call(oracle, operation, images[row : row + 1], where[None])
            require_alike([array[row : row + 1] for array in found], expected, np.zeros(1), (mode, operation, row))


def test_the_second_start_measures_and_compiles_nothing(
    settings: EngineSettings, first: EngineInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def contents() -> Mapping[str, int]:
        kept = [path for path in settings.engine_cache.glob("torch-*") if path.is_file()]
        kept += settings.engine_cache.glob("torch-*/*")
        return {str(path): path.stat().st_mtime_ns for path in kept}

    def fail(*arguments: object) -> None:
        pytest.fail("this was done at the first start")

    there = contents()
    monkeypatch.setattr("model.engines.cuda.torch_engine.measure_modes", fail)
    monkeypatch.setattr("model.engines.context.convert_in_child", fail)
    second = build(settings).info
    assert (second.torch, second.attention, second.entry) == (first.torch, first.attention, first.entry)
    assert contents() == there
