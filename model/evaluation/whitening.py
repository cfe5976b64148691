"""PCA whitening fitted on vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model.arrays import Floats
from model.checkpoints.heads import ROWS, Whitening, pools_of
from model.checkpoints.native import Pooled
from model.engines.base import Engine
from model.evaluation.extract import Progress, Read, ask
from model.evaluation.spec import EvalSpec

LEAST_VARIANCE = 1e-8
"""Of an axis that is kept, as a share of the largest variance. Below lies the rounding of float32; there is always such
an axis, since the last layer norm takes the mean out of the tokens."""


class WhiteningError(ValueError):
    """Vectors that no whitening can be fitted on."""


def fit_whitening(vectors: Floats) -> Whitening:
    """Whitening under which `vectors`, float32 [n, D], have mean 0 and unit variance along D' uncorrelated axes.

    Axes with next to no variance are left out, so D' is at most min(D, n - 1) and no number grows without bounds.

    Raises:
        WhiteningError: the vectors do not differ.
    """
    centre = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - centre  # float64 [n, D]
    variances, axes = np.linalg.eigh(centred.T @ centred / len(vectors))  # ascending [D], columns of [D, D]
    variances, axes = variances[::-1], axes[:, ::-1]
    # Rounding alone gives equal vectors a variance of about this.
    noise = np.square(np.finfo(np.float32).eps * np.abs(centre).max()) * len(centre)
    count = int(np.sum(variances > max(LEAST_VARIANCE * variances[0], noise)))
    if count == 0:
        raise WhiteningError("whitening needs vectors that differ")
    matrix = axes[:, :count] / np.sqrt(variances[:count])
    return Whitening(centre.astype(np.float32), np.ascontiguousarray(matrix, dtype=np.float32))


def fit_pools(
    engine: Engine, read: Read, paths: Sequence[str], numbers: Sequence[int], progress: Progress
) -> tuple[dict[Pooled, Whitening], int]:
    """Whitening of each pooled vector, fitted on whole images, and how many of them could be used.

    Args:
        engine: what computes.
        read: gives an image's patches.
        paths: of all images there are.
        numbers: places in `paths` of those to fit on.
        progress: told of each image.

    Raises:
        WhiteningError: fewer than two images can be used, or all are the same.
        EngineError: the engine cannot run a batch.
    """
    pools = pools_of(engine.info.config)
    questions = EvalSpec(engine.info.config.grid, seed=0, pools=pools, keeps=(1.0,))
    found = ask(engine, read, paths, numbers, questions, progress)
    if found is None:
        raise WhiteningError("none of the images can be used")
    return {pool: fit_whitening(found.vectors[:, 0, ROWS[pool]]) for pool in pools}, len(found.numbers)
