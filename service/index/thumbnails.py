"""Small pictures of images: stored in an index, and drawn on sheets."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from model.images.open_image import MAX_PIXELS, open_image
from model.images.preprocess import load_upright

SIDE = 160
"""Long side of a thumbnail in pixels."""
JPEG_QUALITY = 80


def make_thumbnail(data: bytes, side: int = SIDE, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture of an encoded image, sRGB and upright, whose long side has `side` pixels at most.

    Raises:
        ImageError: the image cannot be decoded.
    """
    pixels = load_upright(open_image(data, max_pixels), side)
    left, top, right, bottom = pixels.box
    width, height = right - left, bottom - top
    scale = min(1.0, side / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return pixels.resize(size, Image.Resampling.BICUBIC, pixels.box)


def encode_thumbnail(data: bytes, max_pixels: int = MAX_PIXELS) -> bytes:
    """The thumbnail of an encoded image as JPEG.

    Raises:
        ImageError: the image cannot be decoded.
    """
    file = BytesIO()
    make_thumbnail(data, max_pixels=max_pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
