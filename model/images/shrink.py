"""Images decoded at a smaller size, to be kept: in memory for training, or in a pack."""

from __future__ import annotations

from PIL import Image

from model.images.formats.base import StoredImage
from model.images.preprocess import Box, load_upright


def load_small(image: StoredImage, side: int) -> tuple[Image.Image, tuple[float, float]]:
    """Decodes an opened image with its short side scaled down to `side`, by Pillow's bicubic filter with antialiasing.

    A smaller image keeps its size.

    Returns:
        The image, sRGB and upright, of the size `small_size` (or that size turned by 90 degrees, if EXIF turns the
        image); and the width and height of the picture as `load_upright` decodes it.

    Raises:
        PixelLimitError, ImageError: as `load_upright`.
    """
    short, long = sorted(small_size(image.size, side))
    pixels = load_upright(image, side)
    width, height = extent(pixels.box)
    size = (long, short) if width > height else (short, long)
    if pixels.image.size == size:
        return pixels.in_srgb(), (width, height)
    return pixels.resize(size, Image.Resampling.BICUBIC, pixels.box), (width, height)


def small_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height of an image of `size` after its short side is scaled down to `side`."""
    short = min(size)
    if short <= side:
        return size
    width, height = (max(side, round(length * side / short)) for length in size)
    return width, height


def extent(box: Box) -> tuple[float, float]:
    """Width and height of a box."""
    left, top, right, bottom = box
    return right - left, bottom - top
