"""Neighbours against scikit-learn's, counted by hand."""

from collections import Counter

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from model.evaluation.neighbours import predict


@pytest.mark.parametrize("k", [1, 4, 20])
def test_most_votes_win_and_ties_go_to_the_nearest(k: int) -> None:
    rng = np.random.default_rng(k)
    train, vectors = (rng.normal(size=(n, 5)).astype(np.float32) for n in (300, 700))
    labels = rng.integers(0, 4, 300)
    nearest = NearestNeighbors(n_neighbors=k, metric="cosine").fit(train).kneighbors(vectors)[1]
    expected, ties = [], 0
    for voters in labels[nearest].tolist():
        votes = Counter(voters)
        best = [label for label in votes if votes[label] == max(votes.values())]
        ties += len(best) > 1
        expected.append(min(best, key=voters.index))
    assert ties or k == 1
    np.testing.assert_array_equal(predict(train, labels, vectors, k), expected)


def test_fewer_vectors_than_neighbours_and_zeros() -> None:
    train = np.array([[1, 0], [0, 1], [1, 0.1]], dtype=np.float32)
    vectors = np.array([[0, 3], [0, 0]], dtype=np.float32)
    assert predict(train, np.array([7, 7, 9]), vectors, 20).tolist() == [7, 7]
