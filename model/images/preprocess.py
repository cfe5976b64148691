"""Image files -> upright RGB pixels -> the model's square -> patches: the same for service, training and evaluation.

The module needs no torch. One resize does both the scaling and the crop. Pillow's decoders and its resize release the
GIL, so threads decode in parallel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from model.arrays import Bytes
from model.config import MAEConfig, Preprocessing

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "AVIF", "GIF", "TIFF")
BITS_PER_SAMPLE, ORIENTATION = 0x0102, 0x0112
"""Tags of TIFF; EXIF has the latter too."""
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes an image of each EXIF orientation upright."""
RIGHT_TO_LEFT, BOTTOM_UP = (2, 3, 6, 7), (3, 4, 7, 8)
"""EXIF orientations in which the last stored column lies on the left, and the last stored row at the top."""
DRAFT_FACTOR = 2
"""A JPEG may be decoded at a half, a quarter or an eighth of its size as long as this many pixels are left for each
pixel that the resize gives. With 1 the worst pixel of a photograph is 54 levels off, with 2 it is 6."""
LOCAL_MAX_PIXELS = 178_956_970
"""Pixels of one image among the user's own files, as for training and calibration: Pillow's own limit for an error."""


class ImageError(ValueError):
    """An image that cannot be used; the message says why, without the image's name."""


class UnknownFormatError(ImageError):
    """The bytes are no image of one of `FORMATS`."""


class PixelLimitError(ImageError):
    """An image has more pixels than the limit.

    Attributes:
        size: its width and height.
    """

    def __init__(self, size: tuple[int, int], limit: int) -> None:
        """An image of `size`, width and height, where `limit` pixels are allowed."""
        super().__init__(f"it has {size[0]} x {size[1]} pixels; the limit is {limit} in all")
        self.size = size


class DecodedPixels(NamedTuple):
    """A decoded image that is upright, and the part of it that holds the picture."""

    image: Image.Image
    """RGB, or one channel for a mask."""
    box: Box
    """The part of `image` that the picture fills. A JPEG that is decoded at a smaller scale may end in a column or row
    that is only partly filled: to count it as a whole one would shift the model's square by half a pixel."""

    @classmethod
    def whole(cls, image: Image.Image) -> DecodedPixels:
        """Wraps an image whose picture fills all of it."""
        return cls(image, (0, 0, *image.size))


@contextmanager
def open_image(file: str | IO[bytes], max_pixels: int = LOCAL_MAX_PIXELS) -> Iterator[Image.Image]:
    """Opens an image of one of `FORMATS`, recognised by its bytes; its pixels are counted before any is decoded.

    Until the context is left, every exception but MemoryError counts as the image's fault: Pillow's decoders raise all
    kinds of exceptions when a file is damaged.

    Raises:
        UnknownFormatError: the bytes are no such image.
        PixelLimitError: the image has more than `max_pixels`.
        ImageError: the image is damaged or cannot be read.
    """
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit holds for the whole process; the one below takes its place
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise PixelLimitError(image.size, max_pixels)
            yield image
    except (MemoryError, ImageError):
        raise
    except UnidentifiedImageError as error:
        raise UnknownFormatError(str(error)) from error
    except Exception as error:
        raise ImageError(str(error)) from error


def patches_of(image: Image.Image, config: MAEConfig, preprocessing: Preprocessing) -> Bytes:
    """The model's square of an opened image, as patches uint8 [N, P].

    Raises:
        Exception: as `load_upright`.
    """
    pixels = load_upright(image, preprocessing.resized_short_side(config.image_size))
    return patchify(np.asarray(resize_and_crop(pixels, config, preprocessing)), config.patch_size)


def load_upright(image: Image.Image, least_side: int) -> DecodedPixels:
    """Decodes an opened image: RGB, upright, and never scaled below about twice `least_side`.

    Raises:
        ValueError: the pixels have no known range.
        Exception: any that Pillow's decoders raise for a damaged file.
    """
    orientation = read_orientation(image)
    drafted = image.draft(None, (DRAFT_FACTOR * least_side, DRAFT_FACTOR * least_side))
    image.load()
    if image.format == "TIFF":  # Pillow applies its orientation itself
        return DecodedPixels.whole(to_rgb(image))
    upright = apply_orientation(to_rgb(image), orientation)
    if drafted is None:
        return DecodedPixels.whole(upright)
    width, height = drafted[1][2:][::-1] if orientation >= 5 else drafted[1][2:]
    left = upright.width - width if orientation in RIGHT_TO_LEFT else 0
    top = upright.height - height if orientation in BOTTOM_UP else 0
    return DecodedPixels(upright, (left, top, left + width, top + height))


def resize_and_crop(
    pixels: DecodedPixels,
    config: MAEConfig,
    preprocessing: Preprocessing,
    resampling: Image.Resampling | None = None,
) -> Image.Image:
    """The model's square of an image: scaled and cropped at once, with the same pixels as one after the other.

    Args:
        pixels: an upright image of any mode.
        config: gives the side of the square.
        preprocessing: tells which part of the image is taken, and how it is scaled.
        resampling: a filter other than that of `preprocessing`.
    """
    image, (start_x, start_y, end_x, end_y) = pixels
    side = config.image_size
    resampling = filter_of(preprocessing) if resampling is None else resampling
    if preprocessing.resize == "squash":
        return image.resize((side, side), resampling, box=(start_x, start_y, end_x, end_y))
    width, height = end_x - start_x, end_y - start_y
    short = preprocessing.resized_short_side(side)
    # Halves of odd numbers are exact in floating point, so these round down as those of the whole sizes do.
    resized = (int(short * width // min(width, height)), int(short * height // min(width, height)))
    left, top = (round((length - side) / 2) for length in resized)
    x, y = width / resized[0], height / resized[1]  # source pixels for one resized pixel
    box = (
        start_x + left * x,
        start_y + top * y,
        min(end_x, start_x + (left + side) * x),
        min(end_y, start_y + (top + side) * y),
    )
    return image.resize((side, side), resampling, box=box)


def patchify(pixels: Bytes, patch_size: int) -> Bytes:
    """Pixels [S, S, C] -> patches [N, p * p * C], row-major, each in the order row, column, channel."""
    grid, p = len(pixels) // patch_size, patch_size
    return pixels.reshape(grid, p, grid, p, -1).swapaxes(1, 2).reshape(grid * grid, -1)


def unpatchify(patches: Bytes) -> Bytes:
    """Patches [N, P] of a square, P = p * p * 3 -> pixels [S, S, 3]."""
    grid, p = round(len(patches) ** 0.5), round((patches.shape[1] / 3) ** 0.5)
    return patches.reshape(grid, grid, p, p, 3).swapaxes(1, 2).reshape(grid * p, grid * p, 3)


def read_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image; 1 (upright) where it is missing or cannot be read."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # the metadata is damaged, which every viewer ignores: the pixels may be fine
        return 1
    return orientation if orientation in TRANSPOSITIONS else 1


def apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """Turns an image that is stored in an EXIF orientation upright."""
    return image.transpose(TRANSPOSITIONS[orientation]) if orientation in TRANSPOSITIONS else image


def filter_of(preprocessing: Preprocessing) -> Image.Resampling:
    """Pillow's name of the filter that images are scaled with."""
    return Image.Resampling[preprocessing.filter.upper()]


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts any mode that Pillow reads to RGB: alpha over white, 16 bits scaled and not clipped.

    Raises:
        ValueError: the pixels have no known range (32-bit floats and integers).
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]  # a TIFF may have 12
        white_level = 2**bits - 1
        scaled = (np.asarray(image) * np.uint32(255) + white_level // 2) // white_level
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image.convert("RGB")
