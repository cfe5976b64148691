"""The outputs of an engine for a few images, which parity compares, and how they are collected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.arrays import Bytes, Floats
from model.engines.base import Engine, gather_visible
from model.engines.fixed_images import IMAGES, fixed_patches, visible_quarter
from model.masking import PAD, all_indices


@dataclass(frozen=True)
class EngineOutputs:
    """The outputs of one engine for R images."""

    whole: Floats
    """Pooled vectors float32 [R, 2, D] with every patch visible."""
    masked: Floats
    """Pooled vectors float32 [R, 2, D] with a quarter of the patches visible."""
    pixels: Bytes | None
    """Reconstructed patches uint8 [R, N, P]; None without a decoder."""
    error: Floats | None
    """Squared error of each patch, float32 [R, N]; None without a decoder."""

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The arrays that exist, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


def collect_outputs(engine: Engine, batch_size: int | None = None, images: Bytes | None = None) -> EngineOutputs:
    """Runs images through `engine` in batches of `batch_size`, spread over all its lanes.

    The outputs are in the order of the images, which are repeated where all lanes together take more than there are.

    Args:
        engine: the engine to run.
        batch_size: images per batch; by default the engine's preferred batch, but at most all images at once.
        images: uint8 [R, N, P]; the fixed images by default.
    """
    config, lanes = engine.info.config, engine.info.lanes
    patches = fixed_patches(config) if images is None else images
    count = len(patches)
    size = batch_size or max(1, min(engine.info.preferred_batch, count // lanes))
    order = np.arange(max(count, size * lanes)) % count
    quarter = visible_quarter(config, count)
    everything = np.repeat(all_indices(config.num_patches)[None], count, axis=0)
    visible_patches = np.take_along_axis(patches, quarter[..., None], axis=1)
    whole, masked, pixels, error = [], [], [], []
    for turn, start in enumerate(range(0, len(order), size)):
        lane, part = turn % lanes, order[start : start + size]
        whole.append(engine.embed(lane, patches[part], everything[part]))
        masked.append(engine.embed(lane, visible_patches[part], quarter[part]))
        if config.has_decoder:
            batch_pixels, batch_error = engine.reconstruct(lane, patches[part], quarter[part])
            pixels.append(batch_pixels)
            error.append(batch_error)
    return EngineOutputs(
        np.concatenate(whole),
        np.concatenate(masked),
        np.concatenate(pixels) if pixels else None,
        np.concatenate(error) if error else None,
    )


def collect_padded_outputs(engine: Engine) -> EngineOutputs:
    """Runs the fixed images in pairs that share a padded batch: one whole, the next with a quarter of its patches."""
    config, lanes = engine.info.config, engine.info.lanes
    patches, quarter = fixed_patches(config), visible_quarter(config, IMAGES)
    padded = np.full((IMAGES, config.num_patches), PAD, dtype=np.int32)
    padded[:, : quarter.shape[1]] = quarter
    everything = np.repeat(all_indices(config.num_patches)[None], IMAGES, axis=0)
    whole, masked, pixels, error = [], [], [], []
    for first in range(IMAGES):
        second = (first + 1) % IMAGES
        visible_indices = np.stack([everything[first], padded[second]])
        pair = patches[[first, second]]
        pooled = engine.embed(first % lanes, gather_visible(pair, visible_indices), visible_indices)
        whole.append(pooled[0])
        masked.append(pooled[1])
        if config.has_decoder:
            pair_pixels, pair_error = engine.reconstruct(first % lanes, pair, visible_indices)
            pixels.append(pair_pixels[1])
            error.append(pair_error[1])
    order = np.arange(-1, IMAGES - 1)  # the second image of a pair is the next one
    return EngineOutputs(
        np.stack(whole),
        np.stack(masked)[order],
        np.stack(pixels)[order] if pixels else None,
        np.stack(error)[order] if error else None,
    )
