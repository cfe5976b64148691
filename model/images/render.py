"""Patches -> the views of a reconstruction, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.arrays import Bytes, Floats, Indices
from model.images.png import encode_png
from model.images.preprocess import unpatchify
from model.masking import removed_flags

View = Literal["composite", "reconstruction", "masked", "panel", "error", "spread"]
GREY = 128
GAP = 8
"""White pixels between two images."""
ERROR_SCALE = 2.0
"""The squared error that is shown in the brightest colour."""
SPREAD_SCALE = 64.0
"""The spread that is shown in the brightest colour, in levels of 255."""
# Black to pale yellow, each colour brighter than the last, so that they read in grey too (after matplotlib's inferno).
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)


def render(
    view: View,
    patches: Bytes,
    pixels: Bytes,
    error: Floats,
    visible_indices: Indices,
    spread: Floats | None = None,
) -> bytes:
    """Renders one view as PNG.

    Args:
        view: `composite`: the visible patches, and the removed ones as reconstructed; `reconstruction`: every patch as
            the decoder predicts it; `masked`: the visible patches, and grey for the removed ones; `panel`: original,
            masked, reconstruction and composite side by side; `error`: the squared error of the removed patches as
            heat, from 0 (black) to 2 (pale yellow), over the dimmed visible ones; `spread`: the spread of each pixel
            as heat, from 0 (black) to 64 (pale yellow), over the dimmed patches that have none.
        patches: the image, uint8 [N, P].
        pixels: the decoder's prediction, uint8 [N, P].
        error: squared error of each patch in standardised pixels, float32 [N].
        visible_indices: indices of the visible patches, int32 [K].
        spread: standard deviation of each pixel over several reconstructions, float32 [N, p * p], NaN for patches
            without one; `spread` needs it.
    """
    if view == "panel":
        return encode_png(panel(patches, pixels, visible_indices))
    if view == "composite":
        return encode_png(unpatchify(composite(patches, pixels, visible_indices)))
    if view == "masked":
        return encode_png(unpatchify(_grey_out(patches, visible_indices)))
    if view == "reconstruction":
        return encode_png(unpatchify(pixels))
    if view == "spread":
        if spread is None:
            raise ValueError("a single reconstruction has no spread")
        coloured = heat(np.nan_to_num(spread) / SPREAD_SCALE).reshape(patches.shape)
        shown = np.isfinite(spread).all(axis=1, keepdims=True)
        return encode_png(unpatchify(np.where(shown, coloured, _dim(patches))))
    removed = _removal_mask(patches, visible_indices)
    coloured = np.tile(heat(error / ERROR_SCALE), patches.shape[1] // 3)
    return encode_png(unpatchify(np.where(removed, coloured, _dim(patches))))


def panel(patches: Bytes, pixels: Bytes, visible_indices: Indices) -> Bytes:
    """Original, masked, reconstruction and composite side by side, uint8 [S, 4 S + 3 GAP, 3]."""
    views = (patches, _grey_out(patches, visible_indices), pixels, composite(patches, pixels, visible_indices))
    return _concatenate([unpatchify(view) for view in views], axis=1)


def sheet(panels: Sequence[Bytes]) -> Bytes:
    """Panels of one size, one below the other."""
    return _concatenate(panels, axis=0)


def composite(patches: Bytes, pixels: Bytes, visible_indices: Indices) -> Bytes:
    """The visible patches of an image [N, P], and the removed ones as predicted in `pixels` [N, P]: [N, P]."""
    return np.where(_removal_mask(patches, visible_indices), pixels, patches)


def heat(shares: Floats) -> Bytes:
    """Shares of the brightest colour [...] -> colours uint8 [..., 3]; what is above 1 is as bright as 1."""
    position = np.clip(shares, 0, 1) * (len(HEAT) - 1)
    stops = np.arange(len(HEAT))
    colours = np.stack([np.interp(position, stops, HEAT[:, channel]) for channel in range(3)], axis=-1)
    return colours.round().astype(np.uint8)


def _removal_mask(patches: Bytes, visible_indices: Indices) -> NDArray[np.bool_]:
    """Whether each patch is removed, [N, 1]."""
    return removed_flags(visible_indices, len(patches)).astype(bool)[:, None]


def _grey_out(patches: Bytes, visible_indices: Indices) -> Bytes:
    return np.where(_removal_mask(patches, visible_indices), np.uint8(GREY), patches)


def _dim(patches: Bytes) -> Bytes:
    grey = patches.reshape(len(patches), -1, 3).mean(axis=2, keepdims=True) * 0.5
    return np.repeat(grey, 3, axis=2).reshape(patches.shape).astype(np.uint8)


def _concatenate(images: Sequence[Bytes], axis: int) -> Bytes:
    """Images [H, W, 3] in a row (axis 1) or a column (axis 0), with white gaps between them."""
    height, width, _ = images[0].shape
    gap = np.full((height, GAP, 3) if axis else (GAP, width, 3), 255, dtype=np.uint8)
    return np.concatenate([part for image in images for part in (image, gap)][:-1], axis=axis)
