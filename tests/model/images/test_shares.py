"""Pictures of shares, against colours mixed by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from model.images.shares import SharesView, render_shares

RED, BLUE, WHITE = (178, 24, 43), (33, 102, 172), (247, 247, 247)
PATCHES = np.random.default_rng(0).integers(0, 256, (4, 2 * 2 * 3), dtype=np.uint8)
"""Four patches of 2 x 2 pixels."""
SHARES = np.array([0.4, -0.4, 0.2, 0], np.float32)


def picture(view: SharesView, shares: np.ndarray = SHARES) -> np.ndarray:
    """The picture as patches, [4, pixels of a patch, 3]."""
    with Image.open(io.BytesIO(render_shares(view, PATCHES, shares))) as png:
        pixels = np.asarray(png).astype(float)
    assert pixels.shape == (4, 4, 3)
    return np.stack([pixels[2 * row : 2 * row + 2, 2 * col : 2 * col + 2].reshape(4, 3) for row, col in PLACES])


PLACES = ((0, 0), (0, 1), (1, 0), (1, 1))


def test_the_colours_alone() -> None:
    colours = picture("heatmap")
    expected = [RED, BLUE, np.add(RED, WHITE) / 2, WHITE]
    for patch, colour in zip(colours, expected, strict=True):
        np.testing.assert_allclose(patch, np.tile(colour, (4, 1)), atol=0.5)


def test_the_colours_cover_four_fifths_of_the_grey_image() -> None:
    grey = PATCHES.reshape(4, 4, 3).mean(axis=2, keepdims=True)
    cover = np.array([0.8, 0.8, 0.4, 0])[:, None, None]
    colour = np.array([RED, BLUE, RED, RED])[:, None]
    np.testing.assert_allclose(picture("overlay"), grey * (1 - cover) + cover * colour, atol=0.5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_largest_share_has_the_full_colour_whatever_its_size(scale: float) -> None:
    np.testing.assert_array_equal(picture("heatmap", SHARES * np.float32(scale)), picture("heatmap"))


def test_no_share_has_no_colour() -> None:
    assert (picture("heatmap", np.zeros(4, np.float32)) == WHITE[0]).all()
