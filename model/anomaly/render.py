"""Scores of patches -> pictures, as PNG."""

from __future__ import annotations

from typing import Literal

import numpy as np

from model.anomaly.scores import score_map
from model.arrays import Bytes, Floats
from model.images.png import encode_png
from model.images.preprocess import unpatchify
from model.images.render import HEAT

AnomalyView = Literal["overlay", "heatmap", "mask", "expected"]
OPACITY = 0.85
"""Share of the brightest colour in an overlay; the share falls with the score."""


def render_scores(view: Literal["overlay", "heatmap"], patches: Bytes, scores: Floats, brightest: float) -> bytes:
    """Renders scores as PNG in the colours of heat: black for 0, and pale yellow for `brightest` or more.

    Args:
        view: `heatmap`: the colours alone; `overlay`: over the image in grey, which shows through where scores are low.
        patches: the image, uint8 [N, P].
        scores: of the patches, float32 [N].
        brightest: the score of the brightest colour, above 0.
    """
    image = unpatchify(patches)
    levels = np.clip(score_map(scores, len(image)) / brightest, 0, 1)[..., None]  # [S, S, 1]
    colours = _colours(levels[..., 0])
    if view == "overlay":
        grey = image.mean(axis=2, keepdims=True)
        colours = grey + OPACITY * levels * (colours - grey)
    return encode_png(colours.round().astype(np.uint8))


def render_mask(patches: Bytes, scores: Floats, threshold: float) -> bytes:
    """Renders as PNG which patches score more than the threshold: white; the others are black."""
    flags = (scores > threshold)[:, None]
    return encode_png(unpatchify(np.where(flags, np.uint8(255), np.zeros_like(patches))))


def render_expected(expected: Floats) -> bytes:
    """Renders as PNG what the decoder expects, float32 [N, P], 0 to 255."""
    return encode_png(unpatchify(expected.round().astype(np.uint8)))


def _colours(levels: Floats) -> Floats:
    """Levels from 0 to 1, [S, S] -> colours [S, S, 3], 0 to 255."""
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(levels, stops, HEAT[:, channel]) for channel in range(3)], axis=2)
