"""Masks that are drawn as pictures: which patches they remove, however their image is turned and cropped."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from model.config import MAEConfig
from service.errors import InvalidParameter, TooManyPixels, UndecodableImage
from tests.support.image_decoding import ORIENTATIONS, SMALL, decoder
from tests.support.images import encoded


def halves(size: tuple[int, int], box: tuple[int, int, int, int], mode: str = "L") -> Image.Image:
    """Black, white in `box`."""
    image = Image.new("L", size)
    image.paste(255, box)
    return image.convert(mode)


def removed(mask: Image.Image, image: bytes, config: MAEConfig = SMALL, **preprocessing: Any) -> list[int]:
    d = decoder(config, **preprocessing)
    return list(d.read_mask(encoded(mask), d.decode(image, 0)))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "I;16"])
def test_a_white_half_removes_exactly_those_patches(mode: str) -> None:
    size = (128, 128)
    mask = halves(size, (0, 0, 64, 128), "L")
    mask = Image.fromarray(np.asarray(mask).astype(np.uint16) * 257) if mode == "I;16" else mask.convert(mode)
    assert removed(mask, encoded(Image.new("RGB", size))) == [0, 1, 4, 5, 8, 9, 12, 13]


def test_a_patch_goes_if_more_than_half_of_it_is_white() -> None:
    image = encoded(Image.new("RGB", (64, 64)))
    assert removed(halves((64, 64), (0, 0, 16, 8)), image) == []
    assert removed(halves((64, 64), (0, 0, 16, 9)), image) == [0]


TOP = [0, 1, 2, 3]


@pytest.mark.parametrize("orientation", [*ORIENTATIONS, 9])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_mask_is_drawn_over_the_image_as_people_see_it(form: str, orientation: int) -> None:
    """Over a square image the size says nothing: the mask's top half is what people see at the top."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = encoded(Image.new("RGB", (96, 96)), form, exif=exif)
    assert removed(halves((96, 96), (0, 0, 96, 24)), image) == TOP
    upright = (64, 96) if orientation in (5, 6, 7, 8) else (96, 64)
    image = encoded(Image.new("RGB", (96, 64)), form, exif=exif)
    assert removed(halves(upright, (0, 0, upright[0], upright[1] // 4)), image, resize="squash") == TOP


@pytest.mark.parametrize(("orientation", "expected"), [(5, [0, 4, 8, 12]), (6, [3, 7, 11, 15]), (8, [0, 4, 8, 12])])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_mask_of_the_size_as_stored_turns_with_its_image(form: str, orientation: int, expected: list[int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = encoded(Image.new("RGB", (96, 64)), form, exif=exif)
    assert removed(halves((96, 64), (0, 0, 96, 16)), image, resize="squash") == expected


def test_a_masks_own_orientation_is_applied() -> None:
    """An editor that saves the photograph's metadata with the mask: both are stored on their side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = encoded(Image.new("RGB", (96, 96)), "JPEG", exif=exif)
    stored = encoded(halves((96, 96), (0, 0, 24, 96)), "PNG", exif=exif)
    d = decoder(SMALL)
    assert list(d.read_mask(stored, d.decode(image, 0))) == TOP


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("preprocessing", [{}, {"crop_fraction": 0.8}, {"resize": "squash"}])
def test_a_mask_is_cropped_as_its_image_is(orientation: int, preprocessing: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    drawing = halves((150, 97), (20, 30, 88, 80))
    image = encoded(drawing, exif=exif)
    d = decoder(SMALL, filter="box", **preprocessing)
    white = d.decode(image, 0).patches.mean(axis=1) > 127.5
    assert 0 < white.sum() < 16
    seen = encoded(ImageOps.exif_transpose(Image.open(io.BytesIO(image))))
    assert list(d.read_mask(seen, d.decode(image, 0))) == list(np.flatnonzero(white))


def test_white_strokes_on_a_transparent_ground_are_what_is_removed() -> None:
    strokes = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    strokes.paste((255, 255, 255, 255), (0, 0, 64, 16))
    image = encoded(Image.new("RGB", (64, 64)))
    assert removed(strokes, image) == TOP
    hole = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    hole.paste((0, 0, 0, 0), (0, 0, 64, 16))
    assert removed(hole, image) == TOP


def test_a_mask_must_be_as_large_as_its_image() -> None:
    with pytest.raises(InvalidParameter, match="the mask is 64 x 48 pixels, its image 48 x 64") as refusal:
        removed(Image.new("L", (64, 48)), encoded(Image.new("RGB", (48, 64))))
    assert refusal.value.details == {"parameter": "mask"}
    with pytest.raises(InvalidParameter, match="the mask is 24 x 32 pixels, its image 48 x 64"):
        removed(Image.new("L", (24, 32)), encoded(Image.new("RGB", (48, 64))))


def test_a_mask_that_is_no_image_is_named() -> None:
    d = decoder(SMALL)
    image = d.decode(encoded(Image.new("RGB", (64, 64))), 0)
    with pytest.raises(UndecodableImage, match="the mask is no image"):
        d.read_mask(b"white, please", image)
    with pytest.raises(TooManyPixels, match="the mask has"):
        decoder(SMALL, max_pixels=100).read_mask(encoded(Image.new("L", (64, 64))), image)
