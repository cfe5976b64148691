"""PNG files, read back by Pillow's decoder."""

import io

import numpy as np
import pytest
from PIL import Image

from model.images.png import encode_png


def read(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        image.verify()  # every chunk's checksum
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (17, 5), (224, 920), (1792, 920)])
def test_it_holds_the_very_pixels(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (*size, 3), dtype=np.uint8)
    assert np.array_equal(read(encode_png(pixels)), pixels)


def test_pixels_that_are_not_contiguous() -> None:
    """As a picture of patches is, a view with its axes swapped."""
    pixels = np.random.default_rng(3).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    assert np.array_equal(read(encode_png(pixels.swapaxes(0, 1))), pixels.swapaxes(0, 1))
    assert np.array_equal(read(encode_png(pixels[::-1, ::2])), pixels[::-1, ::2])


def test_about_as_small_as_pillow_makes_it() -> None:
    from skimage import data

    pixels = data.coffee()
    usual = io.BytesIO()
    Image.fromarray(pixels).save(usual, "PNG")
    assert len(encode_png(pixels)) < 1.15 * len(usual.getvalue())
    assert len(encode_png(np.zeros_like(pixels))) < 0.02 * pixels.size
