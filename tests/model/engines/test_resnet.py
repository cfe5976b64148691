"""A convolutional model behind every engine: the eager module's numbers, and the same bits whoever shares the batch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoints.checkpoint import load
from model.engines.base import Engine, gather_visible
from model.masking import restore_indices_for
from model.nn.serving import DecoderGraph, EncoderGraph
from model.nn.vit import patchify


@pytest.fixture(scope="module")
def crowd(golden: Mapping[str, np.ndarray]) -> np.ndarray:
    """Eight photographs in patches of 32 x 32, uint8 [8, 49, 3072]."""
    return patchify(torch.from_numpy(golden["images"]), 32).contiguous().numpy()


def places(visible: int, count: int) -> np.ndarray:
    """Different ones for each image, int32 [count, visible]."""
    generator = np.random.default_rng(visible)
    return np.stack([np.sort(generator.permutation(49)[:visible]) for _ in range(count)]).astype(np.int32)


def call(engine: Engine, operation: str, patches: np.ndarray, visible_indices: np.ndarray) -> Any:
    """A tuple of arrays."""
    if operation == "reconstruct":
        return engine.reconstruct(0, patches, visible_indices)
    return (getattr(engine, operation)(0, gather_visible(patches, visible_indices), visible_indices),)


@pytest.mark.slow
@pytest.mark.parametrize("visible", [5, 49])
def test_an_image_gets_the_same_bits_alone_and_in_any_batch(
    resnet_engine: Engine, crowd: np.ndarray, visible: int
) -> None:
    visible_indices = places(visible, 5)
    for operation in ("tokens", "reconstruct"):
        alone = {i: call(resnet_engine, operation, crowd[i : i + 1], visible_indices[i : i + 1]) for i in (0, 4)}
        for size in (2, 5):
            together = call(resnet_engine, operation, crowd[:size], visible_indices[:size])
            for index in filter(range(size).__contains__, alone):
                for one, many in zip(alone[index], together, strict=True):
                    assert np.array_equal(one[0], many[index]), (operation, size, index)


def test_what_is_served_is_what_the_eager_module_says(
    resnet_engine: Engine, resnet_weights: Path, crowd: np.ndarray
) -> None:
    checkpoint = load(resnet_weights)
    model, visible_indices = checkpoint.build(), places(12, 4)
    visible = gather_visible(crowd[:4], visible_indices)
    with torch.inference_mode():
        pooled, latent = EncoderGraph(model, checkpoint.preprocessing)(
            *map(torch.from_numpy, (visible, visible_indices))
        )
        rows = torch.from_numpy(restore_indices_for(visible_indices, 49))
        painted, errors = DecoderGraph(model, checkpoint.preprocessing)(latent, rows, torch.from_numpy(crowd[:4]))
    vectors = resnet_engine.embed(0, visible, visible_indices)
    np.testing.assert_allclose(vectors, pooled.numpy(), atol=1e-4)
    np.testing.assert_allclose(vectors[:, 0], vectors[:, 1], atol=1e-6)
    np.testing.assert_allclose(resnet_engine.tokens(0, visible, visible_indices), latent[:, 1:].numpy(), atol=1e-4)
    pixels, error = resnet_engine.reconstruct(0, crowd[:4], visible_indices)
    assert np.abs(pixels.astype(int) - painted.numpy()).max() <= 1
    np.testing.assert_allclose(error, errors.numpy(), rtol=1e-4)


def test_what_was_removed_is_never_looked_at(resnet_engine: Engine, crowd: np.ndarray) -> None:
    visible_indices = places(12, 2)
    doctored = crowd[:2].copy()
    for image, seen in zip(doctored, visible_indices, strict=True):
        image[np.setdiff1d(np.arange(49), seen)] = 77
    found, expected = (resnet_engine.reconstruct(0, patches, visible_indices)[0] for patches in (doctored, crowd[:2]))
    assert np.array_equal(found, expected)


def test_it_passes_the_gate_and_says_its_family(resnet_engine: Engine) -> None:
    info = resnet_engine.info
    assert (info.config.family, info.config.num_patches) == ("resnet", 49)
    assert info.parity is not None and info.parity.cosine >= 0.999999
