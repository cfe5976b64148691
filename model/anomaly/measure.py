"""How well scores tell faulty images from good ones: area under the ROC curve, of images and of pixels, and F1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from model.anomaly.scores import image_score, score_map
from model.arrays import Floats

Flags = NDArray[np.bool_]


class AnomalyResult(BaseModel):
    """The result of a test on good and bad images."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    good: int
    """Good images that were scored."""
    bad: int
    """Bad images that were scored."""
    image_auroc: float
    """Area under the ROC curve of the images' scores."""
    pixel_auroc: float | None
    """Area under the ROC curve of the pixels' scores, all images together; none without masks."""
    threshold: float | None
    """The score above which an image is flagged; none without a memory bank."""
    flagged_good: int | None
    """Good images that were flagged."""
    flagged_bad: int | None
    """Bad images that were flagged."""
    f1: float | None
    """F1 of flagging bad images."""


def measure_anomalies(
    good: Sequence[Floats], bad: Sequence[Floats], masks: Sequence[Flags] | None, threshold: float | None
) -> AnomalyResult:
    """Measures scores of patches, float32 [N] for each image.

    Args:
        good: scores of good images, at least one.
        bad: scores of bad images, at least one.
        masks: the faulty pixels of the model's square of each bad image, [S, S]; at least one is faulty.
        threshold: the score above which an image is flagged.
    """
    scores = np.array([image_score(patches) for patches in (*good, *bad)])
    is_bad = np.arange(len(scores)) >= len(good)
    pixel_auroc = None
    if masks is not None:
        side = len(masks[0])
        maps = np.stack([score_map(patches, side) for patches in (*good, *bad)])
        faulty = np.concatenate([np.zeros((len(good), side, side), bool), np.stack(masks)])
        pixel_auroc = auroc(maps, faulty)
    flagged_good = flagged_bad = f1 = None
    if threshold is not None:
        flagged_good, flagged_bad = (int((scores[which] > threshold).sum()) for which in (~is_bad, is_bad))
        f1 = 2 * flagged_bad / (flagged_bad + flagged_good + len(bad))
    return AnomalyResult(
        good=len(good),
        bad=len(bad),
        image_auroc=auroc(scores, is_bad),
        pixel_auroc=pixel_auroc,
        threshold=threshold,
        flagged_good=flagged_good,
        flagged_bad=flagged_bad,
        f1=f1,
    )


def auroc(scores: Floats, faulty: Flags) -> float:
    """Area under the ROC curve: the share of pairs of one faulty and one good in which the faulty one scores more.

    A tie counts half. Few are faulty among millions of pixels, so only the good ones are sorted, which takes a tenth of
    the time of scikit-learn's `roc_auc_score`.

    Args:
        scores: any shape.
        faulty: of the same shape, with at least one of each kind.
    """
    good = np.sort(scores[~faulty])
    below, not_above = (np.searchsorted(good, scores[faulty], side=side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(good)))
