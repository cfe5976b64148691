"""Photographs -> the model's square of pixels -> patches, whoever asks: the service, training or evaluation.

Needs no torch. One resize does both the scaling and the crop; Pillow's decoders and its resize release the GIL.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.config import MAEConfig, Preprocessing

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "AVIF", "GIF", "TIFF")
BITS_PER_SAMPLE, ORIENTATION = 0x0102, 0x0112  # tags of TIFF, the latter also of EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of each EXIF orientation upright."""
RIGHT_TO_LEFT, BOTTOM_UP = (2, 3, 6, 7), (3, 4, 7, 8)
"""Orientations in which what is stored last lies on the left or at the top."""
# A JPEG may be decoded at a half, a quarter or an eighth of its size, as long as this many pixels are left for each one
# that the resize gives: with 1 the worst pixel of a photograph is 54 levels off, with 2 it is 6.
DRAFT_GAP = 2
# In an image's `info`: the box, in its own pixels, that what it was decoded from at a smaller scale really fills. A
# pixel at the end that is not whole counts as one in its size, which would shift the model's square by half a pixel.
EXTENT = "extent"


def loaded(image: Image.Image, least_side: int) -> Image.Image:
    """Loads the pixels of an opened image: RGB and upright, never scaled below about twice `least_side`.

    Raises:
        Exception: whatever Pillow's decoders raise for a damaged file.
    """
    orientation = orientation_of(image)
    drafted = image.draft(None, (DRAFT_GAP * least_side, DRAFT_GAP * least_side))
    image.load()
    if image.format == "TIFF":  # Pillow turns them itself
        return rgb(image)
    upright = rgb(turned(image, orientation))
    if drafted is not None:
        width, height = drafted[1][2:][::-1] if orientation >= 5 else drafted[1][2:]
        left = upright.width - width if orientation in RIGHT_TO_LEFT else 0
        top = upright.height - height if orientation in BOTTOM_UP else 0
        upright.info[EXTENT] = (left, top, left + width, top + height)
    return upright


def square(
    image: Image.Image, config: MAEConfig, preprocessing: Preprocessing, resampling: Image.Resampling | None = None
) -> Image.Image:
    """The model's square of an upright image: scaled and cropped at once, the same pixels as one after the other.

    Args:
        image: any mode; its `EXTENT` counts, if it has one.
        config: for the side.
        preprocessing: which part of the image, and how it is scaled.
        resampling: a filter other than that of `preprocessing`.
    """
    side = config.image_size
    resampling = Image.Resampling[preprocessing.filter.upper()] if resampling is None else resampling
    start_x, start_y, end_x, end_y = image.info.get(EXTENT, (0, 0, *image.size))
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


def cut(pixels: NDArray[np.uint8], patch_size: int) -> NDArray[np.uint8]:
    """Pixels [S, S, C] -> patches [N, p * p * C], row-major, each in the order row, column, channel."""
    grid, p = len(pixels) // patch_size, patch_size
    return pixels.reshape(grid, p, grid, p, -1).swapaxes(1, 2).reshape(grid * grid, -1)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none, or none that can be read."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata, which every viewer shrugs off: the pixels may be fine
        return 1
    return orientation if orientation in TURNS else 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """`image`, stored in an EXIF orientation, as it is meant to be seen."""
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def rgb(image: Image.Image) -> Image.Image:
    """Any mode that Pillow reads, as RGB: alpha over white, 16 bits scaled and not clipped.

    Raises:
        ValueError: pixels without a known range (32-bit floats and integers).
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))[0]  # a TIFF may have 12
        most = 2**bits - 1
        scaled = (np.asarray(image) * np.uint32(255) + most // 2) // most
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image.convert("RGB")
