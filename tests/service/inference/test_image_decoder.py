"""Decoding, against Pillow's and NumPy's own way to the same pixels."""

import io
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from model.config import PRESETS, MAEConfig, Preprocessing
from service.errors import InvalidParameter, OutOfMemory, TooManyPixels, UndecodableImage, UnsupportedType
from service.inference.image_decoder import ImageDecoder
from tests.support.images import encoded

TINY = PRESETS["mae_tiny"]
SMALL = MAEConfig(image_size=64, patch_size=16, embed_dim=8, depth=1, num_heads=1, decoder_depth=0)
"""4 x 4 patches."""
ORIENTATIONS = range(1, 9)


def decoder(config: MAEConfig = TINY, max_pixels: int = 10_000_000, **preprocessing: Any) -> ImageDecoder:
    return ImageDecoder(config, Preprocessing(**preprocessing), max_pixels)


def decoded(data: bytes, config: MAEConfig = TINY, **preprocessing: Any) -> np.ndarray:
    """Pixels [S, S, 3], put together patch by patch, row by row, column by column, channel by channel."""
    patches = decoder(config, **preprocessing).decode(data, 0).patches
    assert patches.dtype == np.uint8
    assert patches.shape == (config.num_patches, config.patch_dim)
    p, grid = config.patch_size, config.grid
    pixels = np.zeros((config.image_size, config.image_size, 3), dtype=np.uint8)
    for number, patch in enumerate(patches):
        down, across = divmod(number, grid)
        pixels[down * p : (down + 1) * p, across * p : (across + 1) * p] = patch.reshape(p, p, 3)
    return pixels


def over_white(image: Image.Image) -> Image.Image:
    """RGB, alpha over white in floating point."""
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    return Image.fromarray((rgba[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8))


def cropped(image: Image.Image, side: int = 224, short: int = 224) -> np.ndarray:
    """The short side scaled to `short`, then the centre square cut out, as torchvision defines both."""
    width, height = image.size
    small = min(width, height)
    size = (int(short * width / small), int(short * height / small))
    resized = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in size)
    return np.asarray(resized.crop((left, top, left + side, top + side)))


def farthest(found: np.ndarray, expected: np.ndarray) -> int:
    return int(np.abs(found.astype(int) - expected).max())


@pytest.fixture(scope="module")
def chelsea(photographs: Mapping[str, Image.Image]) -> Image.Image:
    """451 x 300."""
    return photographs["chelsea"]


@pytest.fixture(scope="module")
def large(photographs: Mapping[str, Image.Image]) -> Image.Image:
    """2048 x 1366, with the grain of a camera."""
    picture = Image.new("RGB", (2048, 1366))
    for number, photograph in enumerate(photographs.values()):
        place = (1024 * (number % 2), 683 * (number // 2))
        picture.paste(photograph.resize((1024, 683), Image.Resampling.BICUBIC), place)
    grain = np.random.default_rng(0).integers(-8, 9, (1366, 2048, 1))
    return Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))


# --- resize, crop, patches


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (224, 224), (225, 224), (600, 300), (100, 80), (333, 777)])
def test_one_resize_does_what_resize_and_crop_do(chelsea: Image.Image, size: tuple[int, int]) -> None:
    image = chelsea.resize(size)
    found, expected = decoded(encoded(image)), cropped(image)
    # Rounding alone: between its two passes Pillow rounds, and which comes first depends on the sizes.
    assert farthest(found, expected) <= 2
    assert np.abs(found - expected.astype(int)).mean() < 0.2


def test_an_image_of_the_very_size_is_left_alone(chelsea: Image.Image) -> None:
    image = chelsea.resize((224, 224))
    assert np.array_equal(decoded(encoded(image)), np.asarray(image))


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (2048, 1366)])
def test_a_crop_fraction_leaves_a_margin(chelsea: Image.Image, size: tuple[int, int]) -> None:
    image = chelsea.resize(size)
    assert farthest(decoded(encoded(image), crop_fraction=0.875), cropped(image, short=256)) <= 2


@pytest.mark.parametrize("name", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_squashing_keeps_the_whole_picture(chelsea: Image.Image, name: str) -> None:
    expected = chelsea.resize((224, 224), Image.Resampling[name.upper()])
    assert np.array_equal(decoded(encoded(chelsea), resize="squash", filter=name), np.asarray(expected))


@pytest.mark.parametrize("turned", [False, True])
def test_a_line_of_pixels_becomes_its_middle(turned: bool) -> None:
    line = np.random.default_rng(1).integers(0, 256, (3000, 1, 3), dtype=np.uint8)
    middle = line[1490:1510]  # all that a bicubic filter around the middle can reach
    found, expected = decoded(encoded(oriented(line, turned))), cropped(oriented(middle, turned))
    assert farthest(found, expected) <= 1


def oriented(pixels: np.ndarray, turned: bool) -> Image.Image:
    return Image.fromarray(pixels.swapaxes(0, 1) if turned else pixels)


def test_a_single_pixel_fills_the_square() -> None:
    assert (decoded(encoded(Image.new("RGB", (1, 1), (1, 2, 3)))) == (1, 2, 3)).all()


def test_a_patch_is_ordered_by_row_column_channel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    patches = decoder(SMALL).decode(encoded(Image.fromarray(pixels)), 0).patches
    for patch, row, column, channel in ((0, 0, 0, 0), (0, 0, 1, 2), (1, 0, 0, 0), (6, 3, 5, 1), (15, 15, 15, 2)):
        down, across = divmod(patch, 4)
        expected = pixels[16 * down + row, 16 * across + column, channel]
        assert patches[patch, 48 * row + 3 * column + channel] == expected


# --- formats and modes


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


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand: `rows` is what zlib gave."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_a_channel(chelsea: Image.Image, colour: int, channels: int) -> None:
    """Which Pillow reads but cannot write: colour, grey with alpha, colour with alpha."""
    values = np.stack([sixteen_bits(band) for band in chelsea.split()] + [sixteen_bits(chelsea)], axis=-1)
    values = values[..., [0, 3] if channels == 2 else slice(channels)]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    alpha = values[..., -1:] / 65535 if channels != 3 else np.ones((300, 451, 1))
    colours = values[..., : 1 if channels == 2 else 3] / 257 * alpha + 255 * (1 - alpha)
    expected = Image.fromarray(np.broadcast_to(colours.round().astype(np.uint8), (300, 451, 3)).copy())
    found = decoded(png(451, 300, 16, colour, zlib.compress(rows)))
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


# --- refusals


def test_a_header_that_claims_too_many_pixels_is_enough() -> None:
    with pytest.raises(TooManyPixels, match="image 2 has 40000 x 40000 pixels; the limit is 50000000") as refusal:
        decoder(max_pixels=50_000_000).decode(png(40_000, 40_000, 8, 2, b""), 2)
    assert refusal.value.status == 413
    assert refusal.value.details == {"image": 2, "limit": 50_000_000}


def test_the_limit_itself_is_allowed() -> None:
    data = encoded(Image.new("L", (100, 50)))
    assert decoder(max_pixels=5000).decode(data, 0).size == (100, 50)
    with pytest.raises(TooManyPixels):
        decoder(max_pixels=4999).decode(data, 0)


@pytest.mark.live
def test_a_bomb_is_not_unpacked() -> None:
    """In a process of its own, whose memory is measured: 1.6 gigapixels in 200 kB of PNG, and of other formats."""
    script = """
        import io, resource, zlib
        from PIL import Image
        from tests.service.inference.test_image_decoder import decoder, encoded, png
        from service.errors import TooManyPixels

        packer = zlib.compressobj(1)
        rows = b"".join(packer.compress(bytes(5001)) for _ in range(40_000)) + packer.flush()
        bombs = [png(40_000, 40_000, 1, 0, rows)]
        gif = bytearray(encoded(Image.new("P", (8, 8)), "GIF"))
        gif[6:10] = b"\\xff\\xff\\xff\\xff"
        bmp = bytearray(encoded(Image.new("RGB", (8, 8)), "BMP"))
        bmp[18:26] = (50_000).to_bytes(4, "little") * 2
        bombs += [bytes(gif), bytes(bmp)]
        d = decoder()
        d.decode(encoded(Image.new("RGB", (2000, 2000))), 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for bomb in bombs:
            try:
                d.decode(bomb, 0)
            except TooManyPixels:
                continue
            raise SystemExit("decoded")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 20_000, grown
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_images_are_undecodable(chelsea: Image.Image, form: str, share: float) -> None:
    data = encoded(chelsea, form)
    with pytest.raises(UndecodableImage, match="image 5") as refusal:
        decoder().decode(data[: int(len(data) * share)], 5)
    assert refusal.value.status == 400
    assert refusal.value.details == {"image": 5}


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(1000), b"{}" * 600])
def test_no_image_at_all_is_undecodable(data: bytes) -> None:
    with pytest.raises(UndecodableImage, match="image 0"):
        decoder().decode(data, 0)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
        (b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2", "a video"),
        (b"\xff\x0a\xfa\x7f\x01", "JPEG XL"),
    ],
)
def test_what_people_send_by_mistake_is_named(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedType, match=f"image 1 is {name}; served are JPEG, PNG") as refusal:
        decoder().decode(data + bytes(100), 1)
    assert refusal.value.status == 415
    assert refusal.value.details["image"] == 1


@pytest.mark.parametrize("form", ["ICO", "PPM", "JPEG2000", "PDF", "EPS"])
def test_what_else_pillow_reads_is_not_served(chelsea: Image.Image, form: str) -> None:
    with pytest.raises((UndecodableImage, UnsupportedType)):
        decoder().decode(encoded(chelsea, form), 0)


# --- masks


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


def test_a_lack_of_memory_is_not_the_fault_of_the_image(chelsea: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise MemoryError

    data = encoded(chelsea, "PNG")
    monkeypatch.setattr(Image.core, "fill", fail)
    monkeypatch.setattr(Image.core, "new", fail)
    with pytest.raises(OutOfMemory, match="no memory left to decode image 3") as refusal:
        decoder().decode(data, 3)
    assert (refusal.value.status, refusal.value.headers["retry-after"]) == (503, "5")
    assert "image" not in refusal.value.details  # or `on_error=skip` would leave it out
