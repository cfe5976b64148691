"""Decoding each format and mode, upright, against Pillow's and NumPy's own way to the same pixels."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from service.errors import UndecodableImage
from tests.support.image_decoding import ORIENTATIONS, SMALL, cropped, decoded, decoder, farthest
from tests.support.image_files import png_of_rows
from tests.support.images import encoded


def over_white(image: Image.Image) -> Image.Image:
    """RGB, alpha over white in floating point."""
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    return Image.fromarray((rgba[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8))


@pytest.fixture(scope="module")
def large(photographs: Mapping[str, Image.Image]) -> Image.Image:
    """2048 x 1366, with the grain of a camera."""
    picture = Image.new("RGB", (2048, 1366))
    for number, photograph in enumerate(photographs.values()):
        place = (1024 * (number % 2), 683 * (number // 2))
        picture.paste(photograph.resize((1024, 683), Image.Resampling.BICUBIC), place)
    grain = np.random.default_rng(0).integers(-8, 9, (1366, 2048, 1))
    return Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))


LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
}


@pytest.mark.parametrize("form", LOSSLESS)
def test_formats(chelsea: Image.Image, form: str) -> None:
    data = encoded(chelsea, form, **LOSSLESS[form])
    with Image.open(io.BytesIO(data)) as image:
        expected = image.convert("RGB")
    assert farthest(np.asarray(expected), np.asarray(chelsea)) <= (2 if form == "AVIF" else 0)
    assert farthest(decoded(data), cropped(expected)) <= 1


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG", "WEBP"])
def test_the_first_frame_counts(chelsea: Image.Image, form: str) -> None:
    first = chelsea.convert("P", palette=Image.Palette.ADAPTIVE) if form == "GIF" else chelsea
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(first, form, save_all=True, append_images=[ImageOps.invert(chelsea)], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    assert farthest(decoded(data), cropped(first.convert("RGB"))) <= 1


def test_the_pictures_of_telephones_are_jpegs_too(chelsea: Image.Image) -> None:
    data = encoded(chelsea, "MPO", save_all=True, append_images=[ImageOps.invert(chelsea)], quality=95)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO"
    assert farthest(decoded(data), cropped(Image.open(io.BytesIO(data)).convert("RGB"))) <= 1


def with_alpha(chelsea: Image.Image) -> Image.Image:
    ramp = Image.linear_gradient("L").resize(chelsea.size)
    image = chelsea.convert("RGBA")
    image.putalpha(ramp)
    return image


def with_transparent_colour(chelsea: Image.Image) -> tuple[Image.Image, dict[str, Any]]:
    return chelsea.quantize(16), {"transparency": 3}


MODES: dict[str, Callable[[Image.Image], tuple[Image.Image, dict[str, Any]]]] = {
    "L": lambda image: (image.convert("L"), {}),
    "LA": lambda image: (with_alpha(image).convert("LA"), {}),
    "P": lambda image: (image.quantize(32), {}),
    "P with a transparent colour": with_transparent_colour,
    "P with an alpha a colour": lambda image: (image.quantize(16), {"transparency": bytes(range(0, 256, 16))}),
    "RGBA": lambda image: (with_alpha(image), {}),
    "RGB with a transparent colour": lambda image: (
        few := image.quantize(4).convert("RGB"),
        {"transparency": few.getpixel((0, 0))},
    ),
    "L with a transparent grey": lambda image: (image.convert("L"), {"transparency": 128}),
    "1": lambda image: (image.convert("1"), {}),
}


@pytest.mark.parametrize("mode", MODES)
def test_modes(chelsea: Image.Image, mode: str) -> None:
    image, options = MODES[mode](chelsea)
    data = encoded(image, "PNG", **options)
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.mode == mode.split()[0]
        expected = over_white(stored)
    assert farthest(decoded(data), cropped(expected)) <= 2


def test_alpha_lies_over_white() -> None:
    clear, half = Image.new("RGBA", (224, 224), (200, 0, 100, 0)), Image.new("RGBA", (224, 224), (200, 0, 100, 128))
    assert (decoded(encoded(clear)) == 255).all()
    assert farthest(decoded(encoded(half)), np.broadcast_to([227, 127, 177], (224, 224, 3))) <= 1


@pytest.mark.parametrize("kind", ["grey", "YCbCr", "CMYK", "progressive"])
def test_kinds_of_jpeg(chelsea: Image.Image, kind: str) -> None:
    mode = {"grey": "L", "CMYK": "CMYK"}.get(kind, "RGB")
    data = encoded(chelsea.convert(mode), "JPEG", quality=95, progressive=kind == "progressive")
    found = decoded(data)
    assert farthest(found, cropped(Image.open(io.BytesIO(data)).convert("RGB"))) <= 1
    assert np.abs(found - cropped(chelsea.convert(mode).convert("RGB")).astype(int)).mean() < 3


def sixteen_bits(photograph: Image.Image) -> np.ndarray:
    """The photograph's greys, spread over 0..65535 with something in the lower byte."""
    grey = np.asarray(photograph.convert("L")).astype(np.uint32)
    return (grey * 257 - (grey > 0) * (np.arange(grey.size).reshape(grey.shape) % 257)).astype(np.uint16)


def scaled(values: np.ndarray, white: int = 65535) -> Image.Image:
    return Image.fromarray((values.astype(np.float64) * 255 / white).round().astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(chelsea: Image.Image, form: str, order: str) -> None:
    values = sixteen_bits(chelsea)
    data = encoded(Image.fromarray(values.astype(order)), form)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode.startswith("I;16")
    assert farthest(decoded(data), cropped(scaled(values))) <= 1


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_a_channel(chelsea: Image.Image, colour: int, channels: int) -> None:
    """Which Pillow reads but cannot write: colour, grey with alpha, colour with alpha."""
    values = np.stack([sixteen_bits(band) for band in chelsea.split()] + [sixteen_bits(chelsea)], axis=-1)
    values = values[..., [0, 3] if channels == 2 else slice(channels)]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    alpha = values[..., -1:] / 65535 if channels != 3 else np.ones((300, 451, 1))
    colours = values[..., : 1 if channels == 2 else 3] / 257 * alpha + 255 * (1 - alpha)
    expected = Image.fromarray(np.broadcast_to(colours.round().astype(np.uint8), (300, 451, 3)).copy())
    found = decoded(png_of_rows(451, 300, 16, colour, zlib.compress(rows)))
    assert farthest(found, cropped(expected)) <= 3  # Pillow drops the lower byte, of the colour and of the alpha


def test_twelve_bits_are_scaled_to_their_own_white() -> None:
    values = np.random.default_rng(2).integers(0, 4096, (64, 64), dtype=np.uint16)
    first, second = values.reshape(-1, 2).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8).tobytes()
    tags = [(256, 64), (257, 64), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 64), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert len(header) == 122
    found = decoded(header + packed, SMALL)
    assert farthest(found, np.asarray(scaled(values, 4095))) <= 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_known_range_are_refused(mode: str) -> None:
    with pytest.raises(UndecodableImage, match=r"image 3 .*range") as refusal:
        decoder().decode(encoded(Image.new(mode, (64, 64), 70_000), "TIFF"), 3)
    assert refusal.value.details == {"image": 3}


@pytest.mark.parametrize("size", [(2048, 1366), (1366, 2048), (1800, 1200), (640, 480), (1999, 1301), (1027, 1283)])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.875])
def test_a_jpeg_read_at_a_part_of_its_size_is_close(
    large: Image.Image, size: tuple[int, int], crop_fraction: float
) -> None:
    data = encoded(large.resize(size, Image.Resampling.LANCZOS), "JPEG", quality=90)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    difference = np.abs(
        decoded(data, crop_fraction=crop_fraction).astype(int) - cropped(whole, short=int(224 / crop_fraction))
    )
    assert difference.mean() < 0.5
    assert difference.max() <= 10


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_pixel_that_is_not_whole_shifts_nothing_however_the_image_is_turned(
    large: Image.Image, orientation: int
) -> None:
    """Of 1001 x 899 at half the size, the last column and the last row are half ones."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(large.resize((1001, 899), Image.Resampling.LANCZOS), "JPEG", quality=90, exif=exif)
    whole = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.abs(decoded(data).astype(int) - cropped(whole)).mean() < 0.7


# --- turning


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_images_are_turned_once(chelsea: Image.Image, form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": "4:4:4"} if form in ("AVIF", "JPEG") else LOSSLESS[form]
    image = chelsea.resize((300, 240))  # encoded forty times
    found = decoded(encoded(image, form, exif=exif, **options))
    # What the tag means, in the words of its standard: where the stored first row and first column are to be seen.
    stored = np.asarray(image)
    shown = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: stored.swapaxes(0, 1)[:, ::-1],
        7: stored.swapaxes(0, 1)[::-1, ::-1],
        8: stored.swapaxes(0, 1)[::-1],
    }[orientation]
    difference = np.abs(found.astype(int) - cropped(Image.fromarray(shown)))
    assert difference.mean() < 1


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(chelsea: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decoded(encoded(chelsea, exif=exif)), decoded(encoded(chelsea)))


@pytest.mark.parametrize("exif", [b"Exif\0\0not TIFF at all", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_damaged_metadata_do_not_make_an_image_undecodable(chelsea: Image.Image, form: str, exif: bytes) -> None:
    data = encoded(chelsea, form, exif=exif)
    assert np.array_equal(decoded(data), decoded(encoded(chelsea, form)))
