"""Shares of an image's patches in a score -> pictures, as PNG: red for patches that raise it, blue for the others."""

from __future__ import annotations

from typing import Literal

import numpy as np

from model.arrays import Bytes, Floats
from model.images.png import encode_png
from model.images.preprocess import unpatchify

SharesView = Literal["overlay", "heatmap"]
# Blue, white and red of ColorBrewer's RdBu, which people with colour blindness can tell apart.
LOWERS, NOTHING, RAISES = (np.array(colour, dtype=np.float64) for colour in ((33, 102, 172), (247,) * 3, (178, 24, 43)))
STRONGEST = 0.8
"""Part of a pixel that the strongest colour covers in an overlay."""


def render_shares(view: SharesView, patches: Bytes, shares: Floats) -> bytes:
    """Renders shares as PNG. The largest absolute share has the full colour, and a share of 0 has none.

    Args:
        view: `overlay`: the colours over the image in grey; `heatmap`: the colours alone.
        patches: the image, uint8 [N, P].
        shares: of each patch, float32 [N].
    """
    strength = np.abs(shares) / max(float(np.abs(shares).max()), np.finfo(np.float32).tiny)  # [N]
    strength = strength[:, None, None]
    colours = np.where(shares[:, None] >= 0, RAISES, LOWERS)[:, None]  # [N, 1, 3]
    pixels = patches.reshape(len(patches), -1, 3)
    if view == "heatmap":
        background = np.broadcast_to(NOTHING, pixels.shape)
    else:
        background = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
        strength = strength * STRONGEST
    blended = background + strength * (colours - background)
    return encode_png(unpatchify(blended.round().astype(np.uint8).reshape(patches.shape)))
