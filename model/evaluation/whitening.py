"""Fitting PCA whitening on vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.arrays import Floats
from model.checkpoints.heads import POOL_INDEX, Whitening, pools_of
from model.checkpoints.native import Pooled
from model.engines.base import Engine
from model.evaluation.extract import Progress, Reader, extract
from model.evaluation.spec import EvalSpec

MIN_VARIANCE = 1e-8
"""Least variance of an axis that is kept, as a share of the largest. An axis with less holds the rounding of float32
alone. There always is such an axis, since the last layer norm removes the mean of a token."""


class WhiteningError(ValueError):
    """No whitening can be fitted on the vectors."""


def fit_whitening(vectors: Floats) -> Whitening:
    """Fits the whitening under which `vectors`, float32 [n, D], have mean 0 and unit variance along D' axes.

    The axes are uncorrelated. Axes with almost no variance are left out, so D' is at most min(D, n - 1) and no number
    grows without bounds.

    Raises:
        WhiteningError: all vectors are equal.
    """
    centre = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - centre  # float64 [n, D]
    variances, axes = np.linalg.eigh(centred.T @ centred / len(vectors))  # ascending [D], columns of [D, D]
    variances, axes = variances[::-1], axes[:, ::-1]
    # Vectors that are equal still have about this variance, by rounding.
    noise = np.square(np.finfo(np.float32).eps * np.abs(centre).max()) * len(centre)
    count = int(np.sum(variances > max(MIN_VARIANCE * variances[0], noise)))
    if count == 0:
        raise WhiteningError("whitening needs vectors that differ")
    matrix = axes[:, :count] / np.sqrt(variances[:count])
    return Whitening(centre.astype(np.float32), np.ascontiguousarray(matrix, dtype=np.float32))


def fit_pools(
    engine: Engine, read: Reader, paths: Sequence[str], numbers: Sequence[int], progress: Progress
) -> tuple[dict[Pooled, Whitening], int]:
    """Fits a whitening of each pooled vector on whole images.

    Args:
        engine: computes the vectors.
        read: reads an image's patches.
        paths: paths of all images.
        numbers: indices in `paths` of the images to fit on.
        progress: is told of each image.

    Returns:
        The whitening by pooled vector, and how many images could be used.

    Raises:
        WhiteningError: fewer than two images can be used, or all are the same.
        EngineError: the engine cannot run a batch.
    """
    pools = pools_of(engine.info.config)
    spec = EvalSpec(engine.info.config.grid, seed=0, pools=pools, keeps=(1.0,))
    features = extract(engine, read, paths, numbers, spec, progress)
    if features is None:
        raise WhiteningError("none of the images can be used")
    whitening = {pool: fit_whitening(features.vectors[:, 0, POOL_INDEX[pool]]) for pool in pools}
    return whitening, len(features.numbers)
