"""k nearest neighbours by cosine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.arrays import Floats

Labels = NDArray[np.int64]
ROWS = 512
"""Vectors compared at once with all those of the training set."""


def predict(train: Floats, labels: Labels, vectors: Floats, k: int) -> Labels:
    """The class that most of the k nearest vectors have; of classes with as many votes, the one with the nearest.

    Args:
        train: float32 [n, D].
        labels: of `train`, int64 [n].
        vectors: float32 [m, D].
        k: neighbours; all n if there are fewer.

    Returns:
        Classes of `vectors`, int64 [m].
    """
    k = min(k, len(train))
    train, vectors = _scaled(train), _scaled(vectors)
    found = [_voted(vectors[start : start + ROWS] @ train.T, labels, k) for start in range(0, len(vectors), ROWS)]
    return np.concatenate(found)


def _voted(cosine: Floats, labels: Labels, k: int) -> Labels:
    """Cosines [B, n] -> classes [B]."""
    nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(cosine, nearest, axis=1), axis=1, kind="stable")
    voters = labels[np.take_along_axis(nearest, order, axis=1)]  # [B, k], the nearest first
    votes = (voters[:, :, None] == voters[:, None, :]).sum(axis=2)  # [B, k], of each voter's class
    return np.asarray(voters[np.arange(len(voters)), votes.argmax(axis=1)])


def _scaled(vectors: Floats) -> Floats:
    """Each of length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)
