"""The code of this project in the processes of a Ray cluster."""

from pathlib import Path
from typing import Any

import numpy as np

from model.config import PRESETS, Preprocessing
from service.inference.image_decoder import ImageDecoder

PHOTOGRAPH = Path(__file__).parents[1] / "data" / "chelsea.jpg"


def decode(data: bytes) -> np.ndarray:
    return ImageDecoder(PRESETS["mae_tiny"], Preprocessing(), 10**8).decode(data, 0).patches


def test_a_worker_decodes_an_image_to_the_same_patches(ray: Any) -> None:
    data = PHOTOGRAPH.read_bytes()
    patches = ray.get(ray.remote(decode).remote(data))
    np.testing.assert_array_equal(patches, decode(data))
