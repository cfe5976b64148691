"""How alike two pictures are: peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.arrays import Bytes

SIGMA, RADIUS = 1.5, 5
WINDOW = 2 * RADIUS + 1
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
MOST_DB = 99.0


def psnr(one: Bytes, other: Bytes) -> float:
    """In dB, of pictures uint8 of one shape; at most `MOST_DB`, which equal pictures have."""
    error = np.square(one.astype(np.float64) - other).mean()
    return min(MOST_DB, 10 * np.log10(255**2 / error)) if error else MOST_DB


def ssim(one: Bytes, other: Bytes) -> float:
    """Mean structural similarity (Wang et al. 2004, section III) of pictures uint8 [H, W, 3], at most 1.

    Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, wherever it fits inside; mean over the channels.

    Raises:
        ValueError: the pictures are smaller than the window.
    """
    if min(one.shape[:2]) < WINDOW:
        raise ValueError(f"pictures of {one.shape[1]} x {one.shape[0]} are smaller than the window of {WINDOW}")
    # float32 with its origin moved into the middle, so that variances do not come out of differences of large numbers
    x, y = (picture.astype(np.float32) - np.float32(128) for picture in (one, other))
    mean_x, mean_y, xx, yy, xy = _windowed(np.stack([x, y, x * x, y * y, x * y]))
    spread = xx - mean_x * mean_x + yy - mean_y * mean_y
    together = xy - mean_x * mean_y
    mean_x, mean_y = mean_x + 128, mean_y + 128
    likeness = (2 * mean_x * mean_y + C1) / (mean_x * mean_x + mean_y * mean_y + C1)
    return float((likeness * (2 * together + C2) / (spread + C2)).mean(dtype=np.float64))


def _windowed(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weighted means [..., H - 10, W - 10, 3] of [..., H, W, 3] under the window."""
    from scipy.ndimage import correlate1d

    weights = np.exp(-np.square(np.arange(-RADIUS, RADIUS + 1)) / (2 * SIGMA**2))
    weights /= weights.sum()
    for axis in (-3, -2):
        planes = correlate1d(planes, weights, axis=axis)
    return planes[..., RADIUS:-RADIUS, RADIUS:-RADIUS, :]
