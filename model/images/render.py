"""Patches -> the views of a reconstruction, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.arrays import Bytes, Floats, Indices
from model.images.png import png
from model.masking import removed_flags

View = Literal["composite", "reconstruction", "masked", "panel", "error"]
GREY = 128
GAP = 8
ERROR_SCALE = 2.0
# Black, purple, orange, pale yellow: evenly brighter, so that it also reads in grey (after matplotlib's inferno).
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)


def render(view: View, patches: Bytes, pixels: Bytes, error: Floats, visible_indices: Indices) -> bytes:
    """One view as PNG.

    Args:
        view: `composite`: what is visible, the rest reconstructed; `reconstruction`: every patch as the decoder
            paints it; `masked`: what is visible, the rest grey; `panel`: original, masked, reconstruction, composite,
            side by side; `error`: squared error of the removed patches as heat, 0 black to 2 pale yellow, over the
            dimmed rest.
        patches: the image, uint8 [N, P].
        pixels: what the decoder painted, uint8 [N, P].
        error: squared error of each patch in standardised pixels, float32 [N].
        visible_indices: the visible patches, int32 [K].
    """
    removed = removed_flags(visible_indices, len(patches)).astype(bool)[:, None]
    if view == "panel":
        return png(panel(patches, pixels, visible_indices))
    if view == "error":
        return png(picture(np.where(removed, heat(error, patches.shape[1]), _dimmed(patches))))
    masked, composite = _masked(patches, removed), _composite(patches, pixels, removed)
    return png(picture({"composite": composite, "reconstruction": pixels, "masked": masked}[view]))


def panel(patches: Bytes, pixels: Bytes, visible_indices: Indices) -> NDArray[np.uint8]:
    """Original, masked, reconstruction and composite side by side, uint8 [S, 4 S + 3 GAP, 3]."""
    removed = removed_flags(visible_indices, len(patches)).astype(bool)[:, None]
    parts = (patches, _masked(patches, removed), pixels, _composite(patches, pixels, removed))
    return _spaced([picture(part) for part in parts], axis=1)


def sheet(panels: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Panels of one size, one below the other."""
    return _spaced(panels, axis=0)


def picture(patches: Bytes) -> NDArray[np.uint8]:
    """Patches [N, P] of a square -> pixels [S, S, 3]."""
    grid, p = round(len(patches) ** 0.5), round((patches.shape[1] / 3) ** 0.5)
    return patches.reshape(grid, grid, p, p, 3).swapaxes(1, 2).reshape(grid * p, grid * p, 3)


def heat(error: Floats, patch_dim: int) -> Bytes:
    """Error [N] -> patches [N, P] of one colour each."""
    place = np.clip(error / ERROR_SCALE, 0, 1) * (len(HEAT) - 1)
    stops = np.arange(len(HEAT))
    colours = np.stack([np.interp(place, stops, HEAT[:, channel]) for channel in range(3)], axis=1)
    return np.tile(colours.round().astype(np.uint8), patch_dim // 3)


def _masked(patches: Bytes, removed: NDArray[np.bool_]) -> Bytes:
    return np.where(removed, np.uint8(GREY), patches)


def _composite(patches: Bytes, pixels: Bytes, removed: NDArray[np.bool_]) -> Bytes:
    return np.where(removed, pixels, patches)


def _dimmed(patches: Bytes) -> Bytes:
    grey = patches.reshape(len(patches), -1, 3).mean(axis=2, keepdims=True) * 0.5
    return np.repeat(grey, 3, axis=2).reshape(patches.shape).astype(np.uint8)


def _spaced(pictures: Sequence[NDArray[np.uint8]], axis: int) -> NDArray[np.uint8]:
    height, width, _ = pictures[0].shape
    gap = np.full((height, GAP, 3) if axis else (GAP, width, 3), 255, dtype=np.uint8)
    return np.concatenate([part for one in pictures for part in (one, gap)][:-1], axis=axis)
