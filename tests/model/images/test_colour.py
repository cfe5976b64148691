"""Colour profiles, against Little CMS over the whole picture before it is resized."""

import io
import struct
import zlib
from collections.abc import Mapping

import numpy as np
import pytest
from PIL import Image, ImageCms

from model.config import PRESETS, Preprocessing
from model.images.open_image import open_image
from model.images.preprocess import load_upright, patches_of
from tests.support.image_files import (
    ADOBE_RGB,
    DISPLAY_P3,
    PROPHOTO,
    chunk,
    cmyk_profile,
    grey_profile,
    jpeg_file,
    noise,
    png_file,
    read_pixels,
    tiff_file,
)
from tests.support.images import encoded

CONFIG = PRESETS["mae_tiny"]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
WIDE = {"Adobe RGB": ADOBE_RGB, "Display P3": DISPLAY_P3, "ProPhoto": PROPHOTO}


def converted(image: Image.Image, profile: bytes) -> Image.Image:
    """The whole image in sRGB."""
    to_srgb = ImageCms.profileToProfile(image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert to_srgb is not None
    return to_srgb


def square(data: bytes) -> np.ndarray:
    return patches_of(open_image(data), CONFIG, Preprocessing()).astype(int)


def is_ignored(data: bytes) -> bool:
    return load_upright(open_image(data), None).profile_was_ignored


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_colours_are_converted_to_srgb(photographs: Mapping[str, Image.Image], form: str, name: str) -> None:
    image = photographs["coffee"].convert("RGB").resize((360, 240))
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}, "AVIF": {"quality": 95}}.get(form, {})
    data = encoded(image, form, icc_profile=WIDE[name], **options)
    stored = Image.open(io.BytesIO(data)).convert("RGB")
    found = square(data)
    expected = square(encoded(np.asarray(converted(stored, WIDE[name]))))
    ignored = square(encoded(np.asarray(stored)))
    assert np.abs(found - expected).mean() < 0.8  # the order of resize and conversion
    assert np.abs(found - ignored).mean() > 4 * np.abs(found - expected).mean()


def test_the_profile_of_a_bitmap_of_version_five_is_read() -> None:
    pixels = noise(8, 8)
    data = bytearray(encoded(Image.fromarray(pixels), "BMP"))
    rows = bytes(data[54:])
    header = struct.pack("<IiiHHIIiiII", 124, 8, 8, 1, 24, 0, len(rows), 0, 0, 0, 0)
    header += bytes(16) + b"DEBM" + bytes(48) + struct.pack("<IIII", 4, 124 + len(rows), len(ADOBE_RGB), 0)
    body = header + rows + ADOBE_RGB
    found = read_pixels(b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, 14 + 124) + body)
    assert np.array_equal(found, np.asarray(converted(Image.fromarray(pixels), ADOBE_RGB)))


def test_greys_and_inks_are_converted() -> None:
    grey = Image.fromarray(noise(64, 48, 1))
    data = jpeg_file(grey, quality=100, icc_profile=grey_profile(1.0))
    stored = Image.open(io.BytesIO(data))
    assert np.array_equal(read_pixels(data), np.asarray(converted(stored, grey_profile(1.0))))
    inks = Image.fromarray(noise(64, 48, 4), "CMYK")
    data = jpeg_file(inks, quality=100, icc_profile=cmyk_profile())
    stored = Image.open(io.BytesIO(data))
    assert np.array_equal(read_pixels(data), np.asarray(converted(stored, cmyk_profile())))
    assert not np.array_equal(read_pixels(data), np.asarray(stored.convert("RGB")))


def test_transparent_pixels_stay_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (read_pixels(encoded(image, icc_profile=ADOBE_RGB)) == 255).all()


def test_an_srgb_profile_changes_nothing() -> None:
    image = Image.fromarray(noise(64, 64))
    assert np.array_equal(square(encoded(image, icc_profile=SRGB)), square(encoded(image)))
    pixels = load_upright(open_image(encoded(image, icc_profile=SRGB)), None)
    assert pixels.to_srgb is None and not pixels.profile_was_ignored


IMAGE = noise(16, 16)
HUGE = ADOBE_RGB + bytes(1_000_001)
UNUSABLE = {
    "damaged": encoded(Image.fromarray(IMAGE), icc_profile=b"no profile at all" * 20),
    "for inks": encoded(Image.fromarray(IMAGE), icc_profile=cmyk_profile()),
    "cut short": encoded(Image.fromarray(IMAGE), icc_profile=ADOBE_RGB[:150]),
    "too large in PNG": encoded(Image.fromarray(IMAGE), icc_profile=HUGE),
    "too large in WebP": encoded(Image.fromarray(IMAGE), "WEBP", lossless=True, icc_profile=HUGE),
    "too large in TIFF": encoded(Image.fromarray(IMAGE), "TIFF", icc_profile=HUGE),
    "empty in PNG": png_file(IMAGE, before=chunk(b"iCCP", b"")),
    "of an unknown method in PNG": png_file(IMAGE, before=chunk(b"iCCP", b"p\0\1" + zlib.compress(ADOBE_RGB))),
    "with a wrong checksum": png_file(IMAGE, before=chunk(b"iCCP", b"p\0\0" + zlib.compress(ADOBE_RGB), damage=1)),
    "of no bytes in TIFF": tiff_file(
        [
            (256, 4, [16]),
            (257, 4, [16]),
            (258, 3, [8, 8, 8]),
            (259, 3, [1]),
            (262, 3, [2]),
            (277, 3, [3]),
            (34675, 7, b""),
        ],
        [IMAGE.tobytes()],
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_profile_that_cannot_be_used_is_ignored_and_said(name: str) -> None:
    assert np.array_equal(read_pixels(UNUSABLE[name]), IMAGE)
    assert is_ignored(UNUSABLE[name])


def test_a_profile_whose_parts_are_missing_is_ignored() -> None:
    image = Image.fromarray(IMAGE)
    whole = jpeg_file(image, icc_profile=ADOBE_RGB + bytes(70_000))
    second = whole.find(b"ICC_PROFILE\0\x02\x02") - 4
    length = 2 + int.from_bytes(whole[second + 2 : second + 4])
    assert not is_ignored(whole)
    torn = whole[:second] + whole[second + length :]
    assert is_ignored(torn)
    assert np.array_equal(read_pixels(torn), read_pixels(jpeg_file(image)))


def test_little_cms_sees_no_profile_above_a_megabyte(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = ImageCms.ImageCmsProfile
    monkeypatch.setattr(
        ImageCms, "ImageCmsProfile", lambda file: (sizes.append(len(file.getvalue())), original(file))[1]
    )
    for data in UNUSABLE.values():
        is_ignored(data)
    assert sizes and max(sizes) <= 1_000_000
