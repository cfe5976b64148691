"""Linear probes on vectors whose classes are known to lie apart, or not."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model.evaluation.probe import fit_probe


def test_it_finds_what_is_linear_whatever_the_scale() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, 6, 400)
    vectors = rng.normal(size=(400, 4))
    vectors[:, 1] += 8 * labels
    vectors = (vectors * [1e4, 1e-3, 1, 0] + [1e5, 7, 0, 2]).astype(np.float32)  # the last one is constant
    probe = fit_probe(vectors[:300], labels[:300], 200)
    assert np.mean(probe.classify(vectors[300:]) == labels[300:]) > 0.98
    assert probe.converged and 0 < probe.iterations < 200


@pytest.mark.parametrize("classes", [2, 3])
def test_its_weights_give_the_probabilities_of_scikit_learns_pipeline(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels = rng.permutation(np.arange(300) % classes) + 4
    vectors = (rng.normal(size=(300, 6)) * [3, 1, 0.2, 5, 1, 1] + labels[:, None] + 9).astype(np.float32)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(vectors, labels)
    probe = fit_probe(vectors, labels, 100)
    assert probe.classes.tolist() == pipeline.classes_.tolist()
    np.testing.assert_allclose(softmax(probe.logits(vectors), axis=1), pipeline.predict_proba(vectors), atol=1e-4)


def test_it_stops_when_it_has_to() -> None:
    rng = np.random.default_rng(1)
    vectors, labels = rng.normal(size=(200, 50)).astype(np.float32), rng.integers(0, 5, 200)
    probe = fit_probe(vectors, labels, 2)
    assert (probe.iterations, probe.converged) == (2, False)
