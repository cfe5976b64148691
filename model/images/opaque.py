"""Any mode that Pillow reads -> opaque pixels of eight bits: alpha over white, 16 bits scaled and not clipped.

Large images are converted in strips of rows, so that a conversion needs memory for its result and no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.arrays import Bytes

Flags = NDArray[np.bool_]
STRIP_PIXELS, STRIP_BYTES_PER_PIXEL = 1 << 20, 16
"""Pixels that are converted at once, and the bytes that this takes for each of them."""
WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode that Pillow reads to RGB, as `to_opaque` does.

    Raises:
        ValueError: the pixels have no known range (32-bit floats and integers).
    """
    opaque = to_opaque(image)
    return opaque if opaque.mode == "RGB" else opaque.convert("RGB")


def to_opaque(image: Image.Image, white_level: int = 65535, ignore_empty_alpha: bool = False) -> Image.Image:
    """Converts any mode that Pillow reads to opaque pixels of eight bits: L, RGB or CMYK.

    Args:
        image: decoded.
        white_level: the value of white where a channel has 16 bits.
        ignore_empty_alpha: take an alpha that is 0 in every pixel for a byte that nobody meant.

    Raises:
        ValueError: the pixels have no known range (32-bit floats and integers).
    """
    mode = image.mode
    if mode in ("L", "RGB", "CMYK") and "transparency" not in image.info:
        return image
    if mode == "1" and "transparency" not in image.info:
        return image.convert("L")
    if mode.startswith("I;16"):
        return scale_to_bytes(image, white_level)
    if mode in ("I", "F"):
        raise ValueError(f"pixels of mode {mode} have no known range")
    if ignore_empty_alpha and mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return _by_strips(image, "RGB", lambda strip: strip.convert("RGB"))
    if mode in WITH_ALPHA or "transparency" in image.info:
        return _by_strips(image, "RGB", _over_white)
    return image.convert("RGB")


def scale_to_bytes(image: Image.Image, white_level: int) -> Image.Image:
    """Scales a grey image of 16 bits to mode L, such that `white_level` becomes 255."""

    def scale(strip: Image.Image) -> Image.Image:
        values = np.asarray(strip).astype(np.uint32)
        np.minimum(values, white_level, out=values)
        return Image.fromarray(((values * 255 + white_level // 2) // white_level).astype(np.uint8))

    return _by_strips(image, "L", scale)


def whiten(image: Image.Image, is_transparent: Callable[[Bytes, int], Flags]) -> Image.Image:
    """Paints pixels white, in place.

    Args:
        image: L or RGB.
        is_transparent: of rows uint8 [h, W] or [h, W, 3], the first of which is row y: whether each pixel is painted,
            [h, W].
    """
    for top, bottom in _strips(image.size):
        pixels = np.asarray(image.crop((0, top, image.width, bottom))).copy()
        pixels[is_transparent(pixels, top)] = 255
        image.paste(Image.fromarray(pixels), (0, top))
    return image


def _over_white(strip: Image.Image) -> Image.Image:
    if strip.mode in ("La", "RGBa"):  # premultiplied: Pillow converts them to their own kind only
        strip = strip.convert("LA" if strip.mode == "La" else "RGBA")
    white = Image.new("RGBA", strip.size, "white")
    white.alpha_composite(strip.convert("RGBA"))
    return white.convert("RGB")


def _by_strips(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Converts an image strip by strip to `mode`."""
    if image.width * image.height <= STRIP_PIXELS:
        return convert(image)
    converted = Image.new(mode, image.size)
    for top, bottom in _strips(image.size):
        converted.paste(convert(image.crop((0, top, image.width, bottom))), (0, top))
    return converted


def _strips(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """First row and end of each strip."""
    rows = max(1, STRIP_PIXELS // size[0])
    for top in range(0, size[1], rows):
        yield top, min(top + rows, size[1])
