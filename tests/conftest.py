"""Fixtures that tests of both packages share."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden() -> Mapping[str, np.ndarray]:
    """What the packaged model says about eight photographs, written by another implementation (transformers' ViTMAE).

    images uint8 [8, 224, 224, 3]; mask uint8 [8, 196], 1 = removed, 49 kept; embed_cls and embed_mean float32 [8, 192]
    of whole images; reconstruction uint8 [8, 224, 224, 3] of all patches; loss float32 [8] over the removed ones.
    """
    with np.load(Path(__file__).parent / "data" / "golden.npz") as arrays:
        return dict(arrays)
