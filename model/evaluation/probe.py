"""Linear probe: how well a linear classifier of the vectors does (He et al. 2021, section 4.3).

The paper trains it by stochastic gradients on augmented images; here it is multinomial logistic regression on the
vectors of the images as they are.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from model.arrays import Floats
from model.evaluation.neighbours import Labels


class Probed(NamedTuple):
    """What a probe said."""

    classes: Labels
    """Of the vectors asked about, int64 [m]."""
    iterations: int
    """Of the solver."""
    converged: bool
    """Whether it was through before it had to stop."""


def probe(train: Floats, labels: Labels, vectors: Floats, iterations: int) -> Probed:
    """Fits logistic regression (LBFGS, C = 1) on standardised vectors and asks it about others.

    Args:
        train: float32 [n, D]; each number is standardised by its mean and deviation here.
        labels: of `train`, int64 [n], at least two different ones.
        vectors: float32 [m, D].
        iterations: most of the solver.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    classifier = LogisticRegression(max_iter=iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is told by `converged`
        classifier.fit(scaler.transform(train), labels)
    taken = int(classifier.n_iter_.max())
    return Probed(classifier.predict(scaler.transform(vectors)).astype(np.int64), taken, taken < iterations)
