"""Whitening against scikit-learn's PCA, and where there is little to fit on."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from model.arrays import Floats
from model.evaluation.whitening import WhiteningError, fit_whitening


def draw_vectors(n: int, dim: int, rank: int) -> Floats:
    rng = np.random.default_rng(dim)
    axes = np.linalg.qr(rng.normal(size=(dim, rank)))[0]
    mixed = rng.normal(size=(n, rank)) * np.geomspace(3, 0.05, rank) @ axes.T
    return (mixed + 40 * rng.normal(size=dim)).astype(np.float32)


def test_it_is_that_of_scikit_learn_up_to_signs() -> None:
    vectors = draw_vectors(500, 12, 12)
    exact = vectors.astype(np.float64)
    expected = PCA(whiten=True, svd_solver="full").fit_transform(exact)
    expected *= np.sqrt(500 / 499)  # its variances divide by n - 1
    whitened = fit_whitening(vectors).apply(vectors)
    signs = np.sign((whitened * expected).sum(axis=0))
    np.testing.assert_allclose(whitened * signs, expected, atol=2e-3)


@pytest.mark.parametrize(("n", "dim", "rank"), [(500, 12, 12), (500, 12, 5), (6, 40, 40), (2, 3, 3)])
def test_vectors_become_uncorrelated_whatever_their_rank(n: int, dim: int, rank: int) -> None:
    vectors = draw_vectors(n, dim, rank)
    whitening = fit_whitening(vectors)
    rank_left = min(rank, n - 1)
    assert whitening.matrix.shape == (dim, rank_left)
    assert np.isfinite(whitening.matrix).all()
    whitened = whitening.apply(vectors).astype(np.float64)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=5e-3)
    np.testing.assert_allclose(
        np.cov(whitened.T, bias=True).reshape(rank_left, rank_left), np.eye(rank_left), atol=5e-3
    )


@pytest.mark.parametrize("n", [1, 50])
def test_equal_vectors_are_refused(n: int) -> None:
    with pytest.raises(WhiteningError, match="vectors that differ"):
        fit_whitening(np.repeat(draw_vectors(1, 30, 30), n, axis=0))


def test_the_share_of_the_variance_is_that_of_scikit_learn() -> None:
    vectors = draw_vectors(500, 12, 12)
    pca = PCA(svd_solver="full").fit(vectors.astype(np.float64))
    whitening = fit_whitening(vectors)
    np.testing.assert_allclose(whitening.explained_variance, np.cumsum(pca.explained_variance_ratio_), atol=1e-4)
    first = whitening.keep_axes(5)
    np.testing.assert_allclose(first.apply(vectors), whitening.apply(vectors)[:, :5], atol=1e-5)
