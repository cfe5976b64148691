"""What every engine owes: the model's numbers, and the same bits whoever shares the batch."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.engines.base import Engine, gather_visible
from model.engines.build import build
from model.engines.openvino.arithmetic import sample_precision
from model.engines.settings import EngineSettings


@pytest.fixture(scope="module")
def crowd(golden_patches: np.ndarray) -> np.ndarray:
    """32 different images."""
    flipped = golden_patches[:, ::-1]
    return np.ascontiguousarray(np.concatenate([golden_patches, 255 - golden_patches, flipped, 255 - flipped]))


@pytest.fixture(scope="module")
def bf16_engine(openvino_engine: Engine, engine_cache: Path, probe: Path) -> Engine:
    """Of the same graphs, where the CPU has the instructions."""
    if sample_precision("bf16") != "bf16":
        pytest.skip("the same bits are promised for native bf16 alone")
    engine = build(
        EngineSettings(engine_cache=engine_cache, weights=str(probe), backend="openvino", precision="bf16", lanes=2)
    ).engine
    assert engine.info.computes == "bf16"
    return engine


def places(visible: int, count: int) -> np.ndarray:
    """Different ones for each image, int32 [count, visible]."""
    generator = np.random.default_rng(visible)
    return np.stack([np.sort(generator.permutation(196)[:visible]) for _ in range(count)]).astype(np.int32)


def call(engine: Engine, operation: str, patches: np.ndarray, visible_indices: np.ndarray, lane: int = 0) -> Any:
    """A tuple of arrays."""
    if operation == "reconstruct":
        return engine.reconstruct(lane, patches, visible_indices)
    return (getattr(engine, operation)(lane, gather_visible(patches, visible_indices), visible_indices),)


@pytest.mark.slow
@pytest.mark.parametrize("visible", [1, 7, 49, 196])
@pytest.mark.parametrize("operation", ["embed", "tokens", "reconstruct"])
def test_an_image_gets_the_same_bits_alone_and_in_any_batch(
    engine: Engine, crowd: np.ndarray, operation: str, visible: int
) -> None:
    visible_indices = places(visible, 32)
    indices = (0, 1, 4, 31)
    alone = {i: call(engine, operation, crowd[i : i + 1], visible_indices[i : i + 1]) for i in indices}
    for size in (2, 5, 32):
        together = call(engine, operation, crowd[:size], visible_indices[:size])
        assert all(len(array) == size for array in together)
        for index in filter(range(size).__contains__, indices):
            for one, many in zip(alone[index], together, strict=True):
                assert len(one) == 1
                assert np.array_equal(one[0], many[index]), (size, index)


@pytest.mark.parametrize("visible", [7, 49, 196])
@pytest.mark.parametrize("operation", ["embed", "reconstruct"])
def test_so_it_does_in_bf16(bf16_engine: Engine, crowd: np.ndarray, operation: str, visible: int) -> None:
    test_an_image_gets_the_same_bits_alone_and_in_any_batch(bf16_engine, crowd, operation, visible)


def test_embeddings_are_the_golden_ones(
    engine: Engine, golden: Mapping[str, np.ndarray], golden_patches: np.ndarray
) -> None:
    everywhere = np.tile(np.arange(196, dtype=np.int32), (8, 1))
    vectors = engine.embed(0, golden_patches, everywhere)
    assert (vectors.dtype, vectors.shape) == (np.float32, (8, 2, 192))
    assert np.abs(vectors[:, 0] - golden["embed_cls"]).max() < 1e-4
    assert np.abs(vectors[:, 1] - golden["embed_mean"]).max() < 1e-4
    tokens = engine.tokens(0, golden_patches, everywhere)
    assert (tokens.dtype, tokens.shape) == (np.float32, (8, 196, 192))
    assert np.abs(tokens.mean(axis=1) - golden["embed_mean"]).max() < 1e-4


def test_reconstructions_are_the_golden_ones(
    engine: Engine, golden: Mapping[str, np.ndarray], golden_patches: np.ndarray
) -> None:
    visible_indices = np.stack([np.flatnonzero(mask == 0) for mask in golden["mask"]]).astype(np.int32)
    pixels, error = engine.reconstruct(0, golden_patches, visible_indices)
    assert (pixels.dtype, error.dtype) == (np.uint8, np.float32)
    painted = golden["reconstruction"].reshape(8, 14, 16, 14, 16, 3).swapaxes(2, 3).reshape(8, 196, 768)
    assert np.abs(pixels.astype(int) - painted).max() <= 1
    loss = (error * golden["mask"]).sum(axis=1) / golden["mask"].sum(axis=1)
    assert np.abs(loss / golden["loss"] - 1).max() < 1e-4


def test_the_next_batch_leaves_earlier_answers_alone(engine: Engine, crowd: np.ndarray) -> None:
    visible_indices = places(49, 4)
    for operation in ("embed", "tokens", "reconstruct"):
        first = call(engine, operation, crowd[:4], visible_indices)
        kept = [array.copy() for array in first]
        call(engine, operation, crowd[4:8], visible_indices)
        assert all(np.array_equal(*pair) for pair in zip(first, kept, strict=True))


def test_what_was_removed_is_never_looked_at(engine: Engine, crowd: np.ndarray) -> None:
    visible_indices = places(49, 2)
    doctored = crowd[:2].copy()
    for image, seen in zip(doctored, visible_indices, strict=True):
        image[np.setdiff1d(np.arange(196), seen)] = 77
    found, expected = (engine.reconstruct(0, patches, visible_indices)[0] for patches in (doctored, crowd[:2]))
    assert np.array_equal(found, expected)


def test_lanes_do_not_disturb_each_other(openvino_engine: Engine, crowd: np.ndarray) -> None:
    parts = [crowd[:4], crowd[4:8]]
    visible_indices = places(49, 4)
    expected = [call(openvino_engine, "reconstruct", part, visible_indices) for part in parts]
    wrong: list[int] = []

    def work(lane: int) -> None:
        for _ in range(20):
            found = call(openvino_engine, "reconstruct", parts[lane], visible_indices, lane)
            if not all(np.array_equal(*pair) for pair in zip(found, expected[lane], strict=True)):
                wrong.append(lane)

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert openvino_engine.info.lanes == 2
    assert wrong == []
