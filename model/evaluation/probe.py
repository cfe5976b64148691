"""Linear probe: a linear classifier of the vectors (He et al. 2021, section 4.3).

The paper trains it by stochastic gradients on augmented images. Here it is multinomial logistic regression on the
vectors of the unchanged images. `mae evaluate` measures it, and `mae finetune --frozen` stores it as a head.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from model.arrays import Floats
from model.evaluation.neighbours import Labels

PROBE_ITERATIONS = 200
"""Iterations that the solver may take by default."""


class Probe(NamedTuple):
    """A fitted linear probe, and how its solver ended."""

    classes: Labels
    """The C classes of the vectors that it was fitted on, ascending, int64 [C]."""
    weight: Floats
    """Float32 [C, D]; the standardisation of the vectors is folded into weight and bias."""
    bias: Floats
    """Float32 [C]."""
    iterations: int
    """Iterations that the solver took."""
    converged: bool
    """Whether the solver converged within its iterations."""

    def logits(self, vectors: Floats) -> Floats:
        """Vectors float32 [m, D] -> float32 [m, C], of which a softmax gives the probabilities."""
        return np.asarray(vectors @ self.weight.T + self.bias, dtype=np.float32)

    def classify(self, vectors: Floats) -> Labels:
        """Vectors float32 [m, D] -> the most probable classes, int64 [m]."""
        return np.asarray(self.classes[self.logits(vectors).argmax(axis=1)])


def fit_probe(vectors: Floats, labels: Labels, iterations: int = PROBE_ITERATIONS) -> Probe:
    """Fits logistic regression (LBFGS, C = 1) on standardised vectors.

    Args:
        vectors: the vectors to fit on, float32 [n, D]; each dimension is standardised by its mean and deviation.
        labels: their classes, int64 [n], at least two different ones.
        iterations: largest number of iterations of the solver.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(vectors)
    classifier = LogisticRegression(max_iter=iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` tells the caller
        classifier.fit(scaler.transform(vectors), labels)
    weight, bias = classifier.coef_.astype(np.float64), classifier.intercept_.astype(np.float64)
    if len(weight) == 1:  # of two classes only the second has a row: halves give the softmax the same difference
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    taken = int(classifier.n_iter_.max())
    return Probe(
        classifier.classes_.astype(np.int64),
        np.ascontiguousarray(weight, dtype=np.float32),
        bias.astype(np.float32),
        taken,
        taken < iterations,
    )
