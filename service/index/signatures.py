"""Signatures: the pixels of an image, so small that those of a whole index can be compared.

A signature is the whole picture in grey, without a plain frame around it, stretched to a square. Versions of a picture
have almost the same one, whatever their size, quality and colours are.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from model.arrays import Bytes
from model.images.open_image import MAX_PIXELS, open_image
from model.images.preprocess import Box, DecodedPixels, load_upright

SIDE = 32
"""Rows and columns of a signature."""
FRAME_GRID = 64
"""A frame is looked for in a grid of so many rows and columns."""
PLAIN = 12
"""Greys of one row that differ from its median by at most this much are plain, noise of JPEG included."""
LEAST_PICTURE = 16
"""Rows or columns of the grid that are left of a picture at least; with fewer, nothing is cut off."""


def make_signature(data: bytes, max_pixels: int = MAX_PIXELS) -> bytes:
    """The signature of an encoded image: `SIDE` x `SIDE` greys, row after row, one byte each.

    Raises:
        ImageError: the image cannot be decoded.
    """
    pixels = load_upright(open_image(data, max_pixels), FRAME_GRID)
    box = _without_frame(pixels)
    return _greys(pixels, SIDE, box).tobytes()


def _greys(pixels: DecodedPixels, side: int, box: Box) -> Bytes:
    """A part of an image, stretched to a square, uint8 [side, side]."""
    return np.asarray(pixels.resize((side, side), Image.Resampling.BOX, box).convert("L"))


def _without_frame(pixels: DecodedPixels) -> Box:
    """The part of the picture that is left when plain rows and columns at its edges are cut off."""
    grid = _greys(pixels, FRAME_GRID, pixels.box).astype(np.int16)
    top, bottom = _picture_range(grid)
    left, right = _picture_range(grid.T)
    x, y, far_x, far_y = pixels.box
    width, height = (far_x - x) / FRAME_GRID, (far_y - y) / FRAME_GRID
    return x + left * width, y + top * height, x + right * width, y + bottom * height


def _picture_range(grid: np.ndarray[tuple[int, ...], np.dtype[np.int16]]) -> tuple[int, int]:
    """The first row of a picture, and the one after its last."""
    first, last = _plain_rows(grid), len(grid) - _plain_rows(grid[::-1])
    return (first, last) if last - first >= LEAST_PICTURE else (0, len(grid))


def _plain_rows(grid: np.ndarray[tuple[int, ...], np.dtype[np.int16]]) -> int:
    """The number of rows at the top that have one grey, and one more row, which may hold the edge of the frame."""
    is_plain = (np.abs(grid - np.median(grid[0])) <= PLAIN).all(axis=1)
    count = len(grid) if is_plain.all() else int(is_plain.argmin())
    return count + 1 if count else 0
