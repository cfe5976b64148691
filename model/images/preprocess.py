"""Opened images -> upright sRGB pixels -> the model's square -> patches: the same for service, training and evaluation.

The module needs no torch. One resize does both the scaling and the crop. Pillow's decoders and its resize release the
GIL, so threads decode in parallel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from model.arrays import Bytes
from model.config import MAEConfig, Preprocessing
from model.images.colour import ToSRGB, UnusableProfile, conversion_to_srgb
from model.images.errors import blame_image
from model.images.formats.base import StoredImage
from model.images.opaque import to_opaque
from model.images.orientation import BOTTOM_UP, RIGHT_TO_LEFT, apply_orientation, upright_size

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


class DecodedPixels(NamedTuple):
    """A decoded image that is upright, and the part of it that holds the picture."""

    image: Image.Image
    """Of mode L, RGB or CMYK."""
    box: Box
    """The part of `image` that the picture fills. A JPEG that is decoded at a smaller scale may end in a column or row
    that is only partly filled: to count it as a whole one would shift the model's square by half a pixel."""
    to_srgb: ToSRGB | None = None
    """Converts the colours; None if they are sRGB already."""
    profile_was_ignored: bool = False
    """Whether the image has a profile that cannot be used."""

    @classmethod
    def whole(cls, image: Image.Image) -> DecodedPixels:
        """Wraps an image whose picture fills all of it."""
        return cls(image, (0, 0, *image.size))

    def resize(self, size: tuple[int, int], resampling: Image.Resampling, box: Box) -> Image.Image:
        """A part of the image, scaled to `size`, in sRGB.

        Colours are converted after the resize, for the few pixels that are left. That differs from converting them
        before by the rounding of eight bits and by the averaging of two gamma curves that are much alike.
        """
        return self._colours_of(self.image.resize(size, resampling, box=box))

    def in_srgb(self) -> Image.Image:
        """The whole image in sRGB."""
        return self._colours_of(self.image)

    def _colours_of(self, image: Image.Image) -> Image.Image:
        if self.to_srgb is not None:
            return self.to_srgb(image)
        return image if image.mode == "RGB" else image.convert("RGB")


def patches_of(image: StoredImage, config: MAEConfig, preprocessing: Preprocessing) -> Bytes:
    """The model's square of an opened image, as patches uint8 [N, P].

    Raises:
        PixelLimitError, ImageError: as `load_upright`.
    """
    pixels = load_upright(image, preprocessing.resized_short_side(config.image_size))
    return patchify(np.asarray(resize_and_crop(pixels, config, preprocessing)), config.patch_size)


def load_upright(image: StoredImage, least_side: int | None) -> DecodedPixels:
    """Decodes an opened image: opaque, upright, and never scaled below about twice `least_side`.

    Args:
        image: not decoded yet.
        least_side: the side that the pixels are needed for; None for all of them.

    Raises:
        PixelLimitError: it has too many pixels.
        ImageError: it is damaged, or its pixels have no known range.
    """
    image.require_pixels(least_side)
    with blame_image():
        decoded, exact_size = image.decode(least_side)
        opaque = to_opaque(decoded, image.white_level, image.alpha_may_be_unused)
        del decoded  # its memory is needed
    was_ignored, to_srgb = False, None
    try:
        to_srgb = conversion_to_srgb(image.profile, opaque.mode)
    except UnusableProfile:
        was_ignored = True
    if opaque.mode == "CMYK" and to_srgb is None:
        opaque = opaque.convert("RGB")
    upright = apply_orientation(opaque, image.orientation)
    width, height = upright_size(exact_size, image.orientation)
    left = upright.width - width if image.orientation in RIGHT_TO_LEFT else 0
    top = upright.height - height if image.orientation in BOTTOM_UP else 0
    return DecodedPixels(upright, (left, top, left + width, top + height), to_srgb, was_ignored)


def resize_and_crop(
    pixels: DecodedPixels,
    config: MAEConfig,
    preprocessing: Preprocessing,
    resampling: Image.Resampling | None = None,
) -> Image.Image:
    """The model's square of an image: scaled and cropped at once, with the same pixels as one after the other.

    Args:
        pixels: an upright image.
        config: gives the side of the square.
        preprocessing: tells which part of the image is taken, and how it is scaled.
        resampling: a filter other than that of `preprocessing`.
    """
    start_x, start_y, end_x, end_y = pixels.box
    side = config.image_size
    resampling = filter_of(preprocessing) if resampling is None else resampling
    if preprocessing.resize == "squash":
        return pixels.resize((side, side), resampling, pixels.box)
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
    return pixels.resize((side, side), resampling, box)


def patchify(pixels: Bytes, patch_size: int) -> Bytes:
    """Pixels [S, S, C] -> patches [N, p * p * C], row-major, each in the order row, column, channel."""
    grid, p = len(pixels) // patch_size, patch_size
    return pixels.reshape(grid, p, grid, p, -1).swapaxes(1, 2).reshape(grid * grid, -1)


def unpatchify(patches: Bytes) -> Bytes:
    """Patches [N, P] of a square, P = p * p * 3 -> pixels [S, S, 3]."""
    grid, p = round(len(patches) ** 0.5), round((patches.shape[1] / 3) ** 0.5)
    return patches.reshape(grid, grid, p, p, 3).swapaxes(1, 2).reshape(grid * p, grid * p, 3)


def filter_of(preprocessing: Preprocessing) -> Image.Resampling:
    """Pillow's name of the filter that images are scaled with."""
    return Image.Resampling[preprocessing.filter.upper()]
