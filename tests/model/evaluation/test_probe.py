"""Linear probes on vectors whose classes are known to lie apart, or not."""

import numpy as np

from model.evaluation.probe import fit_probe


def test_it_finds_what_is_linear_whatever_the_scale() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, 6, 400)
    vectors = rng.normal(size=(400, 4))
    vectors[:, 1] += 8 * labels
    vectors = (vectors * [1e4, 1e-3, 1, 0] + [1e5, 7, 0, 2]).astype(np.float32)  # the last one is constant
    result = fit_probe(vectors[:300], labels[:300], vectors[300:], 200)
    assert np.mean(result.classes == labels[300:]) > 0.98
    assert result.converged and 0 < result.iterations < 200


def test_it_stops_when_it_has_to() -> None:
    rng = np.random.default_rng(1)
    vectors, labels = rng.normal(size=(200, 50)).astype(np.float32), rng.integers(0, 5, 200)
    result = fit_probe(vectors, labels, vectors, 2)
    assert (result.iterations, result.converged) == (2, False)
