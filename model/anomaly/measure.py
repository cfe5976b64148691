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
    # scikit-learn takes a second to import, and only this function needs it.
    from sklearn.metrics import f1_score, roc_auc_score

    scores = np.array([image_score(patches) for patches in (*good, *bad)])
    is_bad = np.arange(len(scores)) >= len(good)
    pixel_auroc = None
    if masks is not None:
        side = len(masks[0])
        maps = np.stack([score_map(patches, side) for patches in (*good, *bad)])
        faulty = np.concatenate([np.zeros((len(good), side, side), bool), np.stack(masks)])
        pixel_auroc = float(roc_auc_score(faulty.ravel(), maps.ravel()))
    flagged = None if threshold is None else scores > threshold
    return AnomalyResult(
        good=len(good),
        bad=len(bad),
        image_auroc=float(roc_auc_score(is_bad, scores)),
        pixel_auroc=pixel_auroc,
        threshold=threshold,
        flagged_good=None if flagged is None else int(flagged[: len(good)].sum()),
        flagged_bad=None if flagged is None else int(flagged[len(good) :].sum()),
        f1=None if flagged is None else float(f1_score(is_bad, flagged, zero_division=0.0)),
    )
