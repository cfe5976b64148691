"""Fixtures that tests of both packages share."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image


@pytest.fixture(scope="session")
def golden() -> Mapping[str, np.ndarray]:
    """What the probe model says about eight photographs, written by another implementation (transformers' ViTMAE).

    images uint8 [8, 224, 224, 3]; mask uint8 [8, 196], 1 = removed, 49 kept; embed_cls and embed_mean float32 [8, 192]
    of whole images; reconstruction uint8 [8, 224, 224, 3] of all patches; loss float32 [8] over the removed ones.
    """
    with np.load(Path(__file__).parent / "data" / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def probe() -> Path:
    """A small trained model in our own format, the one that the golden numbers are of."""
    return Path(__file__).parent / "data" / "mae_probe_tiny.safetensors"


@pytest.fixture(scope="session")
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One engine cache for all tests, so that the probe model is converted once."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="session")
def photographs() -> Mapping[str, Image.Image]:
    """Photographs that scikit-image ships, in the public domain or CC0, by name."""
    return {
        name: Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "chelsea", "coffee", "rocket")
    }
