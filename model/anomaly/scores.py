"""Scores of patches: how far an image is from what the decoder expects of it, and the map of the scores in pixels.

The scores by a memory bank are the distances of `model.checkpoints.memory_bank`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from model.arrays import Bytes, Floats, Indices
from model.masking import removed_flags

PLAIN_VARIANCE = 0.1
"""Added to the variance that a patch's error is divided by, in standardised pixels: a plain patch may differ a little.

Of 0.03 and 0.1, 0.1 found more on plain paper and as much in photographs.
"""
MAX_BLOCKS = 4
"""A patch is compared by the means of at most 4 x 4 blocks: a decoder gives no finer detail, so a difference in detail
tells little."""
BINOMIAL = (0.25, 0.5, 0.25)


def image_score(scores: Floats) -> float:
    """The score of an image: the largest of its patches' scores [N]. So it is flagged if one of its patches is."""
    return float(scores.max())


def expected_pixels(pixels: Sequence[Bytes], visible_indices: Sequence[Indices]) -> Floats:
    """What the decoder expects in each patch: the mean of its predictions in those passes that remove the patch.

    Args:
        pixels: predictions of each pass, uint8 [N, P].
        visible_indices: the visible patches of each pass, int32 [K]; each patch is removed in one pass or more.

    Returns:
        float32 [N, P], 0 to 255.
    """
    removed = np.stack([removed_flags(indices, len(pixels[0])) for indices in visible_indices])  # [passes, N]
    total = np.zeros(pixels[0].shape, np.float32)
    for predicted, flags in zip(pixels, removed, strict=True):
        total += predicted * flags[:, None]
    return np.asarray(total / removed.sum(axis=0, dtype=np.float32)[:, None], dtype=np.float32)


def reconstruction_scores(patches: Bytes, expected: Floats, std: Sequence[float]) -> Floats:
    """Scores of the patches by their reconstruction, float32 [N].

    The squared error of a patch, by the means of its blocks, is divided by the variance that is usual at its place: the
    variance inside the expected patch, and the mean of those in the 3 x 3 patches around it in the image. So a rich
    texture, which no decoder gets right, does not score more than a plain one. A binomial filter of 3 x 3 patches
    then smooths the scores.

    Args:
        patches: the image, uint8 [N, P].
        expected: what the decoder expects, float32 [N, P].
        std: deviation of each channel's pixels / 255, as the model standardises them.
    """
    scale = 255 * np.asarray(std, np.float32)
    shape = (len(patches), -1, 3)
    image, prediction = (
        array.reshape(shape).astype(np.float32) / scale for array in (patches, expected)
    )  # [N, p*p, 3]
    error = np.square(_block_means(prediction - image)).mean(axis=(1, 2))
    usual = prediction.var(axis=1).mean(axis=1) + _filter(image.var(axis=1).mean(axis=1), (1 / 3, 1 / 3, 1 / 3))
    return _filter(error / (usual + PLAIN_VARIANCE), BINOMIAL)


def score_map(scores: Floats, side: int) -> Floats:
    """Scores of a square's patches [N] -> of its pixels, float32 [S, S], interpolated between the patches' centres."""
    grid = round(len(scores) ** 0.5)
    image = Image.fromarray(np.ascontiguousarray(scores, np.float32).reshape(grid, grid))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))


def _block_means(patches: Floats) -> Floats:
    """Means of blocks, [N, p * p, 3] -> [N, b * b, 3], with the most blocks of one size up to `MAX_BLOCKS` a side."""
    side = round(patches.shape[1] ** 0.5)
    blocks = next(count for count in range(MAX_BLOCKS, 0, -1) if side % count == 0)
    size = side // blocks
    means = patches.reshape(len(patches), blocks, size, blocks, size, 3).mean(axis=(2, 4))
    return np.asarray(means.reshape(len(patches), -1, 3))


def _filter(scores: Floats, weights: Sequence[float]) -> Floats:
    """Filters scores of patches [N] along rows and columns by three weights; edges are repeated."""
    grid = round(len(scores) ** 0.5)
    filtered = scores.reshape(grid, grid)
    for _ in range(2):
        padded = np.pad(filtered, ((1, 1), (0, 0)), mode="edge")
        filtered = np.sum([weight * padded[row : row + grid] for row, weight in enumerate(weights)], axis=0).T
    return np.asarray(filtered.reshape(-1), dtype=np.float32)
