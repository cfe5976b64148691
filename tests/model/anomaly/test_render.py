"""Pictures of scores, read by Pillow."""

import io

import numpy as np
from PIL import Image

from model.anomaly.render import render_expected, render_mask, render_scores
from model.images.render import HEAT


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


PATCHES = np.full((4, 8 * 8 * 3), 80, np.uint8)
SCORES = np.array([0, 0, 0, 5], np.float32)


def test_the_heat_map_goes_from_black_to_pale_yellow() -> None:
    picture = pixels(render_scores("heatmap", PATCHES, SCORES, brightest=4))
    assert picture.shape == (16, 16, 3)
    assert picture[0, 0].tolist() == HEAT[0].tolist() and picture[-1, -1].tolist() == HEAT[-1].tolist()
    middle = pixels(render_scores("heatmap", PATCHES, np.full(4, 2, np.float32), brightest=4))
    assert (middle == HEAT[2].astype(int)).all()


def test_the_overlay_shows_the_image_in_grey_where_nothing_is_found() -> None:
    coloured = np.tile(np.array([30, 60, 90], np.uint8), (4, 64))
    picture = pixels(render_scores("overlay", coloured, SCORES, brightest=4))
    assert picture[0, 0].tolist() == [60, 60, 60]
    assert np.abs(picture[-1, -1] - (60 + 0.85 * (HEAT[-1] - 60))).max() <= 1


def test_the_mask_is_white_above_the_threshold() -> None:
    scores = np.array([1, 2, 3, 2.0001], np.float32)
    picture = pixels(render_mask(PATCHES, scores, 2))
    assert [picture[row, column, 0] for row, column in ((0, 0), (0, 15), (15, 0), (15, 15))] == [0, 0, 255, 255]
    assert set(np.unique(picture)) == {0, 255} and (picture == 255).mean() == 0.5


def test_what_is_expected() -> None:
    expected = np.full((4, 192), 99.6, np.float32)
    assert (pixels(render_expected(expected)) == 100).all()
