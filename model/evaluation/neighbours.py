"""Classification by the k nearest neighbours, by cosine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.arrays import Floats

Labels = NDArray[np.int64]
CHUNK = 512
"""Vectors that are compared at once with all those of the training set."""


def predict(train: Floats, labels: Labels, vectors: Floats, k: int) -> Labels:
    """Predicts the class that most of the k nearest vectors have; a tie goes to the nearest vector of the tied classes.

    Args:
        train: the vectors to search, float32 [n, D].
        labels: the classes of `train`, int64 [n].
        vectors: the vectors to classify, float32 [m, D].
        k: number of neighbours; all n if there are fewer.

    Returns:
        Classes of `vectors`, int64 [m].
    """
    k = min(k, len(train))
    train, vectors = _normalise(train), _normalise(vectors)
    starts = range(0, len(vectors), CHUNK)
    return np.concatenate([_vote(vectors[start : start + CHUNK] @ train.T, labels, k) for start in starts])


def _vote(cosine: Floats, labels: Labels, k: int) -> Labels:
    """Cosines [B, n] -> classes [B]."""
    nearest = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(cosine, nearest, axis=1), axis=1, kind="stable")
    voters = labels[np.take_along_axis(nearest, order, axis=1)]  # [B, k], the nearest first
    votes = (voters[:, :, None] == voters[:, None, :]).sum(axis=2)  # [B, k], of each voter's class
    return np.asarray(voters[np.arange(len(voters)), votes.argmax(axis=1)])


def _normalise(vectors: Floats) -> Floats:
    """Scales each vector to length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)
