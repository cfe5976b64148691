"""Whitening against scikit-learn's PCA, and where there is little to fit on."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from model.arrays import Floats
from model.evaluation.whitening import WhiteningError, fit_whitening


def drawn(n: int, dim: int, rank: int) -> Floats:
    draw = np.random.default_rng(dim)
    axes = np.linalg.qr(draw.normal(size=(dim, rank)))[0]
    mixed = draw.normal(size=(n, rank)) * np.geomspace(3, 0.05, rank) @ axes.T
    return (mixed + 40 * draw.normal(size=dim)).astype(np.float32)


def test_it_is_that_of_scikit_learn_up_to_signs() -> None:
    vectors = drawn(500, 12, 12)
    exact = vectors.astype(np.float64)
    expected = PCA(whiten=True, svd_solver="full").fit_transform(exact)
    expected *= np.sqrt(500 / 499)  # its variances divide by n - 1
    found = fit_whitening(vectors).apply(vectors)
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, atol=2e-3)


@pytest.mark.parametrize(("n", "dim", "rank"), [(500, 12, 12), (500, 12, 5), (6, 40, 40), (2, 3, 3)])
def test_vectors_become_uncorrelated_whatever_their_rank(n: int, dim: int, rank: int) -> None:
    vectors = drawn(n, dim, rank)
    whitening = fit_whitening(vectors)
    left = min(rank, n - 1)
    assert whitening.matrix.shape == (dim, left)
    assert np.isfinite(whitening.matrix).all()
    found = whitening.apply(vectors).astype(np.float64)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=5e-3)
    np.testing.assert_allclose(np.cov(found.T, bias=True).reshape(left, left), np.eye(left), atol=5e-3)


@pytest.mark.parametrize("n", [1, 50])
def test_equal_vectors_are_refused(n: int) -> None:
    with pytest.raises(WhiteningError, match="vectors that differ"):
        fit_whitening(np.repeat(drawn(1, 30, 30), n, axis=0))
