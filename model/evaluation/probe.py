"""Linear probe: a linear classifier of the vectors (He et al. 2021, section 4.3).

The paper trains it by stochastic gradients on augmented images. Here it is multinomial logistic regression on the
vectors of the unchanged images.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from model.arrays import Floats
from model.evaluation.neighbours import Labels


class ProbeResult(NamedTuple):
    """The predictions of a linear probe, and how its solver ended."""

    classes: Labels
    """Predicted classes, int64 [m]."""
    iterations: int
    """Iterations that the solver took."""
    converged: bool
    """Whether the solver converged within its iterations."""


def fit_probe(train: Floats, labels: Labels, vectors: Floats, iterations: int) -> ProbeResult:
    """Fits logistic regression (LBFGS, C = 1) on standardised vectors, and classifies others.

    Args:
        train: the vectors to fit on, float32 [n, D]; each dimension is standardised by its mean and deviation here.
        labels: the classes of `train`, int64 [n], at least two different ones.
        vectors: the vectors to classify, float32 [m, D].
        iterations: largest number of iterations of the solver.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    classifier = LogisticRegression(max_iter=iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` tells the caller
        classifier.fit(scaler.transform(train), labels)
    taken = int(classifier.n_iter_.max())
    return ProbeResult(classifier.predict(scaler.transform(vectors)).astype(np.int64), taken, taken < iterations)
