"""The images that every engine is compared on: drawn from a fixed generator, the same on every machine."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from model.arrays import Bytes, Indices
from model.config import MAEConfig
from model.masking import choose_visible

IMAGES = 8
MASK_RATIO = 0.75


def fixed_patches(config: MAEConfig) -> Bytes:
    """The fixed images, uint8 [IMAGES, N, P]: smooth colours, edges and grain, drawn from raw PCG64 outputs."""
    return _draw(config.image_size, config.patch_size).copy()


def visible_quarter(config: MAEConfig, count: int, first_seed: int = 0) -> Indices:
    """Visible indices of a random quarter of the patches of each of `count` images, int32 [count, K].

    Args:
        config: the model's sizes.
        count: number of images.
        first_seed: the seed of the first image's mask; the next images have the next seeds.
    """
    if config.num_patches < 2:
        return np.zeros((count, 1), dtype=np.int32)
    ratio = min(MASK_RATIO, 1 - 1 / config.num_patches)
    return np.stack([choose_visible("random", config.grid, ratio, first_seed + n) for n in range(count)])


@lru_cache(maxsize=1)  # this takes a tenth of a second, and a start needs the images several times
def _draw(side: int, p: int) -> Bytes:
    """The fixed images with `side` pixels, in patches of `p` x `p`."""
    grid = side // p
    rows, columns = np.mgrid[0:side, 0:side] / side
    images = []
    for seed in range(IMAGES):
        bits = np.random.PCG64(seed)
        draw = (bits.random_raw(3 * 6 * 3) >> 11).reshape(3, 6, 3) * 2.0**-53
        waves = np.zeros((side, side, 3))
        for channel, channel_waves in enumerate(draw):
            for order, (across, down, phase) in enumerate(channel_waves, start=1):
                angle = 2 * np.pi * (order * (across - 0.5) * columns + order * (down - 0.5) * rows + phase)
                # The higher half are square waves: photographs have edges, and errors show at edges.
                waves[..., channel] += (np.cos(angle) if order < 4 else np.sign(np.cos(angle))) / order
        grain = (bits.random_raw(side * side) >> 60).astype(np.float64).reshape(side, side, 1) - 7.5
        images.append(np.clip(128 + 55 * waves + grain, 0, 255).astype(np.uint8))
    stacked = np.stack(images).reshape(IMAGES, grid, p, grid, p, 3)
    return np.ascontiguousarray(stacked.transpose(0, 1, 3, 2, 4, 5)).reshape(IMAGES, grid * grid, -1)
