"""Similarity of two images: peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

import numpy as np

from model.arrays import Bytes, Floats

SIGMA, RADIUS = 1.5, 5
WINDOW = 2 * RADIUS + 1
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
MAX_DB = 99.0


def psnr(a: Bytes, b: Bytes) -> float:
    """PSNR in dB of images uint8 of one shape; at most `MAX_DB`, which equal images have."""
    error = np.square(a.astype(np.float64) - b).mean()
    return min(MAX_DB, 10 * np.log10(255**2 / error)) if error else MAX_DB


def ssim(a: Bytes, b: Bytes) -> float:
    """Mean structural similarity (Wang et al. 2004, section III) of images uint8 [H, W, 3], at most 1.

    The window is a Gaussian of 11 x 11 with sigma 1.5, K1 = 0.01 and K2 = 0.03. The mean is over the channels and over
    all positions where the window lies inside.

    Raises:
        ValueError: the images are smaller than the window.
    """
    if min(a.shape[:2]) < WINDOW:
        raise ValueError(f"pictures of {a.shape[1]} x {a.shape[0]} are smaller than the window of {WINDOW}")
    # float32 with the origin in the middle of the range, so that variances are not differences of large numbers
    x, y = (image.astype(np.float32) - np.float32(128) for image in (a, b))
    mean_x, mean_y, xx, yy, xy = _window_means(np.stack([x, y, x * x, y * y, x * y]))
    variances = xx - mean_x * mean_x + yy - mean_y * mean_y
    covariance = xy - mean_x * mean_y
    mean_x, mean_y = mean_x + 128, mean_y + 128
    luminance = (2 * mean_x * mean_y + C1) / (mean_x * mean_x + mean_y * mean_y + C1)
    return float((luminance * (2 * covariance + C2) / (variances + C2)).mean(dtype=np.float64))


def _window_means(planes: Floats) -> Floats:
    """Weighted means under the window: [..., H, W, 3] -> [..., H - 10, W - 10, 3]."""
    from scipy.ndimage import correlate1d

    weights = np.exp(-np.square(np.arange(-RADIUS, RADIUS + 1)) / (2 * SIGMA**2))
    weights /= weights.sum()
    for axis in (-3, -2):
        planes = correlate1d(planes, weights, axis=axis)
    return planes[..., RADIUS:-RADIUS, RADIUS:-RADIUS, :]
