"""Views of a reconstruction, against pictures put together by hand."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.images.render import GAP, GREY, View, heat, render

SIDE, P = 6, 2  # 3 x 3 patches of 2 x 2 pixels
VISIBLE = np.array([0, 4, 5], dtype=np.int32)
REMOVED = [1, 2, 3, 6, 7, 8]


def photograph(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def patches_of(pixels: np.ndarray) -> np.ndarray:
    """Cut out one by one: patch 3 row + column, in the order row, column, channel."""
    return np.stack(
        [
            pixels[P * row : P * row + P, P * column : P * column + P].reshape(-1)
            for row in range(3)
            for column in range(3)
        ]
    )


def squares(numbers: list[int]) -> np.ndarray:
    """Which pixels lie in these patches, bool [S, S, 1]."""
    flags = np.zeros((SIDE, SIDE, 1), dtype=bool)
    for number in numbers:
        row, column = divmod(number, 3)
        flags[P * row : P * row + P, P * column : P * column + P] = True
    return flags


IMAGE, PAINTED = photograph(0), photograph(1)
ERROR = np.array([9, 0, 0.5, 1, 9, 9, 1.5, 2, 7], dtype=np.float32)
MASKED = np.where(squares(REMOVED), 128, IMAGE)
COMPOSITE = np.where(squares(REMOVED), PAINTED, IMAGE)


def view(name: View) -> np.ndarray:
    data = render(name, patches_of(IMAGE), patches_of(PAINTED), ERROR, VISIBLE)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


@pytest.mark.parametrize(
    ("name", "expected"), [("masked", MASKED), ("composite", COMPOSITE), ("reconstruction", PAINTED)]
)
def test_pictures(name: Any, expected: np.ndarray) -> None:
    assert np.array_equal(view(name), expected)


def test_the_panel_shows_four_side_by_side() -> None:
    panel = view("panel")
    assert panel.shape == (SIDE, 4 * SIDE + 3 * GAP, 3)
    for index, expected in enumerate([IMAGE, MASKED, PAINTED, COMPOSITE]):
        left = index * (SIDE + GAP)
        assert np.array_equal(panel[:, left : left + SIDE], expected)
        assert index == 3 or (panel[:, left + SIDE : left + SIDE + GAP] == 255).all()


def test_the_error_is_heat_over_the_dimmed_rest() -> None:
    picture = view("error")
    colours = {number: picture[P * (number // 3), P * (number % 3)].tolist() for number in range(9)}
    for number in REMOVED:
        assert (picture[squares([number])[..., 0]] == colours[number]).all(), "one colour a patch"
    # matplotlib's inferno at 0, 1/4, 1/2, 3/4 and 1
    inferno = {1: (0, 0, 4), 2: (87, 16, 110), 3: (188, 55, 84), 6: (249, 142, 9), 7: (252, 255, 164)}
    assert {number: tuple(colours[number]) for number in inferno} == inferno
    assert colours[8] == colours[7], "more than 2 is shown as 2"
    seen = ~squares(REMOVED)[..., 0]
    dimmed = IMAGE.mean(axis=2, keepdims=True) / 2
    assert np.abs(picture[seen] - np.broadcast_to(dimmed, IMAGE.shape)[seen]).max() < 1


def test_more_error_is_brighter_and_no_error_is_dark() -> None:
    luma = heat(np.linspace(0, 1.5, 61).astype(np.float32)) @ (0.299, 0.587, 0.114)
    assert (np.diff(luma[:41]) > 0).all()
    assert (luma[40:] == luma[40]).all()


def test_the_spread_is_heat_by_pixel_over_the_dimmed_patches_without_one() -> None:
    spread = np.zeros((9, P * P), np.float32)
    spread[0], spread[1] = (0, 16, 32, 48), (64, 200, 0, 0)
    spread[8] = np.nan
    pixels = np.zeros((9, 3 * P * P), np.uint8)
    error, patches = np.zeros(9, np.float32), patches_of(IMAGE)
    with Image.open(io.BytesIO(render("spread", patches, pixels, error, VISIBLE, spread))) as png:
        picture = np.asarray(png)
    inferno = [(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)]
    assert [tuple(picture[y, x].tolist()) for y, x in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2))] == inferno
    assert tuple(picture[0, 3]) == inferno[-1], "more than 64 is shown as 64"
    assert np.abs(picture[4:, 4:] - np.repeat(IMAGE[4:, 4:].mean(axis=2, keepdims=True) / 2, 3, axis=2)).max() < 1
    with pytest.raises(ValueError, match="no spread"):
        render("spread", patches, pixels, error, VISIBLE)


def test_grey_stands_for_what_is_not_seen() -> None:
    assert GREY == 128
