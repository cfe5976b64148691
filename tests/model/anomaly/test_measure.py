"""AUROC and F1, beside counts of pairs."""

import numpy as np
from sklearn.metrics import roc_auc_score

from model.anomaly.measure import auroc, measure_anomalies


def auroc_by_pairs(good: np.ndarray, bad: np.ndarray) -> float:
    """Share of pairs in which the bad one scores more; a tie counts half."""
    return float(np.mean((bad[:, None] > good) + 0.5 * (bad[:, None] == good)))


def test_images_and_threshold() -> None:
    good = [np.array([0, low, 1, 0], np.float32) for low in (0.5, 2, 3)]
    bad = [np.array([high, 0, 0, 1], np.float32) for high in (2, 4, 2.5, 9)]
    result = measure_anomalies(good, bad, None, threshold=2.2)
    assert result.image_auroc == auroc_by_pairs(np.array([1, 2, 3]), np.array([2, 4, 2.5, 9]))
    assert (result.good, result.bad, result.flagged_good, result.flagged_bad) == (3, 4, 1, 3)
    assert result.f1 == 2 * 3 / (2 * 3 + 1 + 1)  # three found, one false alarm, one missed
    assert result.pixel_auroc is None
    raw = measure_anomalies(good, bad, None, threshold=None)
    assert (raw.threshold, raw.f1, raw.flagged_good, raw.flagged_bad) == (None, None, None, None)
    assert raw.image_auroc == result.image_auroc


def test_auroc_with_ties() -> None:
    rng = np.random.default_rng(3)
    scores, faulty = rng.integers(0, 20, (50, 40)).astype(np.float32), rng.uniform(size=(50, 40)) > 0.9
    assert np.isclose(auroc(scores, faulty), roc_auc_score(faulty.ravel(), scores.ravel()))
    assert auroc(faulty.astype(np.float32), faulty) == 1 and auroc(-scores * 0, faulty) == 0.5


def test_pixels() -> None:
    rng = np.random.default_rng(0)
    good, bad = ([rng.uniform(size=4).astype(np.float32) for _ in range(2)] for _ in range(2))
    masks = [rng.uniform(size=(2, 2)) > 0.6 for _ in range(2)]  # one pixel for each patch: nothing is interpolated
    scores = np.concatenate([*good, *bad])
    faulty = np.concatenate([np.zeros(8, bool), *(mask.ravel() for mask in masks)])
    result = measure_anomalies(good, bad, masks, threshold=None)
    assert np.isclose(result.pixel_auroc or 0, auroc_by_pairs(scores[~faulty], scores[faulty]))
