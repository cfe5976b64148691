"""Exact neighbours of many vectors at once, by products of matrices."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from model.arrays import Floats, Indices

QUERIES_AT_ONCE = 512


def normalise(vectors: Floats) -> Floats:
    """Scales each vector of float32 [n, D] to length 1; zeros stay zeros."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)


def exact_neighbours(queries: Floats, batches: Iterable[Floats], k: int) -> tuple[Indices, Floats]:
    """The k most similar vectors of each query, the most similar first.

    Args:
        queries: vectors of length 1, float32 [m, D].
        batches: all vectors that are compared, of any length, float32 [n_i, D] at a time.
        k: number of neighbours; if there are fewer, the rest has the number -1 and similarity -1.

    Returns:
        Numbers of the neighbours in the order of the batches, int32 [m, k], and similarities, float32 [m, k].
    """
    numbers = np.full((len(queries), k), -1, np.int32)
    similarities = np.full((len(queries), k), -1, np.float32)
    first = 0
    for batch in batches:
        vectors = normalise(batch)
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            rows = slice(start, start + QUERIES_AT_ONCE)
            found = queries[rows] @ vectors.T  # [q, n_i]
            every = np.concatenate([similarities[rows], found], axis=1)
            kept = np.argpartition(-every, k - 1, axis=1)[:, :k]
            kept = np.take_along_axis(kept, np.argsort(-np.take_along_axis(every, kept, 1), axis=1, kind="stable"), 1)
            similarities[rows] = np.take_along_axis(every, kept, axis=1)
            before = np.take_along_axis(numbers[rows], np.minimum(kept, k - 1), axis=1)
            numbers[rows] = np.where(kept < k, before, first + kept - k)
        first += len(vectors)
    return numbers, similarities
