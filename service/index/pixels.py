"""Comparison of signatures: how well the pixels of two images agree, also if one is mirrored or a crop of the other.

The measure is the normalised correlation of what two pictures have in detail: the coarsest waves of the cosine
transform, which hold the light and the layout of a scene, are left out, since pictures of one kind have them in common.
Strong edges count little more than weak ones, so that the edge of an object before a plain background does not decide.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.arrays import Bytes, Floats
from service.index.signatures import SIDE

GRID = 16
"""Rows and columns that are compared."""
COARSE = 10
"""Waves of the cosine transform whose numbers of half periods have a sum below this are left out."""
STRONG = 16.0
"""Detail saturates at about so many greys."""
NOISE = 2.0
"""Detail of so many greys is as likely to be noise: it pulls the correlation of plain pictures towards 0."""
LEAST_DETAIL = 0.8
"""A picture whose correlation with itself is smaller is plain."""
SCALES = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Width and height of the parts of a picture that another may show, at three places along each side."""
PICTURES_AT_ONCE = 512

Side = tuple[float, float]
"""Scale and offset of a part of a picture along one side, as shares of it."""


class PixelComparison:
    """The signatures of some images, ready to be compared."""

    def __init__(self, signatures: Bytes) -> None:
        """For signatures uint8 [n, SIDE, SIDE]."""
        self._signatures = signatures
        self._detail = _detail_basis()
        self._averages, self._rows, self._columns = _windows()
        whole = self._averages[:GRID]
        parts = [
            self._normalise((whole @ some.astype(np.float32) @ whole.T).reshape(len(some), -1))
            for some in np.split(signatures, range(PICTURES_AT_ONCE, len(signatures), PICTURES_AT_ONCE))
        ]
        self.whole: Floats = np.concatenate(parts)
        """Detail of each whole picture, of length 1 at most, float32 [n, GRID * GRID]."""
        self.mirrored: Floats = self.whole.reshape(-1, GRID, GRID)[:, :, ::-1].reshape(self.whole.shape)
        """The same of the mirrored pictures."""
        self.is_plain: NDArray[np.bool_] = (self.whole**2).sum(axis=1) < LEAST_DETAIL
        """Pictures with too little detail to be compared."""

    def correlations(self, first: NDArray[np.intp], second: NDArray[np.intp]) -> Floats:
        """How well two images of each pair agree: 1 for copies, about 0.2 for unrelated images; float32 [p].

        Args:
            first: numbers of images, [p].
            second: numbers of the images to compare with, [p].
        """
        found = np.zeros(len(first), np.float32)
        for numbers, others in ((first, second), (second, first)):
            order = np.argsort(numbers, kind="stable")
            ends = np.nonzero(np.diff(numbers[order], append=-1))[0] + 1
            start = 0
            for end in ends.tolist():
                pairs = order[start:end]
                windows = self._windows_of(int(numbers[pairs[0]]))
                for others_detail in (self.whole[others[pairs]], self.mirrored[others[pairs]]):
                    found[pairs] = np.maximum(found[pairs], (windows @ others_detail.T).max(axis=0))
                start = end
        return found

    def _windows_of(self, number: int) -> Floats:
        """Detail of the parts of one picture, float32 [w, GRID * GRID]."""
        averages = self._averages
        every = averages @ self._signatures[number].astype(np.float32) @ averages.T
        sides = len(averages) // GRID
        chosen = every.reshape(sides, GRID, sides, GRID)[self._rows, :, self._columns, :]  # [w, GRID, GRID]
        return self._normalise(chosen.reshape(len(self._rows), -1))

    def _normalise(self, greys: Floats) -> Floats:
        """Detail of pictures of greys, float32 [n, GRID * GRID], scaled to length 1, or less where there is little."""
        detail = greys @ self._detail
        detail /= np.sqrt(1 + (detail / STRONG) ** 2)
        lengths = np.sqrt((detail**2).sum(axis=1, keepdims=True) + NOISE**2 * GRID**2)
        return np.asarray(detail / lengths, np.float32)


def _detail_basis() -> Floats:
    """The projection that leaves the coarse waves out, float32 [GRID * GRID, GRID * GRID]."""
    places = np.arange(GRID) + 0.5
    waves = np.cos(np.pi * np.arange(GRID)[:, None] * places / GRID)
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    coarse = np.stack([np.outer(waves[u], waves[v]).ravel() for u in range(COARSE) for v in range(COARSE - u)])
    return np.asarray(np.eye(GRID * GRID) - coarse.T @ coarse, np.float32)


def _windows() -> tuple[Floats, NDArray[np.intp], NDArray[np.intp]]:
    """Averages along one side, float32 [sides * GRID, SIDE], and which of the sides are each window's height and width.

    The first is the whole picture.
    """
    places = {scale: [(scale, float(offset)) for offset in np.linspace(0, 1 - scale, 3)] for scale in SCALES[1:]}
    sides: list[Side] = [(1.0, 0.0), *(side for some in places.values() for side in some)]
    pairs = [(0, 0)] + [
        (sides.index(height), sides.index(width)) for some in places.values() for height in some for width in some
    ]
    rows, columns = np.array(pairs).T
    return np.concatenate([_average(side) for side in sides]), rows, columns


def _average(side: Side) -> Floats:
    """Averages the greys along one side of a part, float32 [GRID, SIDE]: each row weighs the pixels that it covers."""
    scale, offset = side
    edges = (offset + scale * np.arange(GRID + 1) / GRID) * SIDE
    pixels = np.arange(SIDE)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.asarray(np.clip(covered, 0, None) * GRID / (scale * SIDE), np.float32)
