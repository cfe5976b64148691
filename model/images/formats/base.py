"""An image as its file stores it: size, orientation and profile are known, and no pixel is decoded yet."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from typing import ClassVar

from PIL import Image, UnidentifiedImageError

from model.images.errors import ImageError, PixelLimitError
from model.images.opaque import STRIP_BYTES_PER_PIXEL, STRIP_PIXELS
from model.images.orientation import upright_size

MAX_PARTS = 10_000
"""A file with more chunks, segments, blocks or strips is refused: photographs have fewer than a hundred."""
ROW_BYTES = 16
"""Pillow's pointer to each row and the padding of rows, in two images. It counts in images of a few columns."""
DRAFT_FACTOR = 2
"""A JPEG may be decoded at a half, a quarter or an eighth of its size as long as this many pixels are left for each
pixel that the resize gives. With 1 the worst pixel of a photograph is 54 levels off, with 2 it is 6."""


class StoredImage(ABC):
    """One image of a file, the first if there are several.

    Attributes:
        size: width and height as stored.
        orientation: the EXIF orientation, 1 to 8.
        profile: the ICC profile; None if there is none, `model.images.colour.UNUSABLE` if it cannot be read.
        white_level: the value of white where a channel has 16 bits.
        alpha_may_be_unused: whether an alpha of 0 in every pixel is a byte that nobody meant.
        max_pixels: how many pixels may be decoded; None for any number.
    """

    format: ClassVar[str]
    """Pillow's name of the format."""

    def __init__(
        self, size: tuple[int, int], orientation: int = 1, profile: bytes | None = None, file_bytes: int = 0
    ) -> None:
        """An image that is stored with `size`; `file_bytes` is the length of its file."""
        self.size = size
        self.orientation = orientation
        self.profile = profile
        self.white_level = 65535
        self.alpha_may_be_unused = False
        self.max_pixels: int | None = None
        self._file_bytes = file_bytes

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height as people see it."""
        return upright_size(self.size, self.orientation)

    def decoded_size(self, least_side: int | None) -> tuple[int, int]:
        """Width and height of what `decode` gives."""
        return self.size

    @property
    def decode_work(self) -> float:
        """What decoding costs, in pixels of a PNG, each of which takes 20 to 50 ns."""
        return self.size[0] * self.size[1]

    def require_pixels(self, least_side: int | None) -> None:
        """Checks the number of pixels that `decode` would give.

        Raises:
            PixelLimitError: there are more than `max_pixels`.
        """
        width, height = self.decoded_size(least_side)
        if self.max_pixels is not None and width * height > self.max_pixels:
            raise PixelLimitError(self.size, (width, height), self.max_pixels)

    @abstractmethod
    def decode(self, least_side: int | None) -> tuple[Image.Image, tuple[float, float]]:
        """Decodes the pixels in any mode of Pillow, as they are stored.

        Args:
            least_side: the shorter side may be decoded smaller, but not below about twice this; None for the whole.

        Returns:
            The image, and the width and height that the picture fills in it.

        Raises:
            Exception: any that Pillow's decoders raise for a damaged file.
        """

    @abstractmethod
    def decoder_bytes_per_pixel(self) -> float:
        """The most bytes that decoding holds at once for each decoded pixel, its result included."""

    def decode_bytes(self, least_side: int | None) -> int:
        """The most bytes of memory that decoding, conversion and turning hold at once."""
        width, height = self.decoded_size(least_side)
        turned = 8 if self.orientation != 1 else 0  # the image before and after
        pixels = int(width * height * max(self.decoder_bytes_per_pixel(), turned))
        pixels += ROW_BYTES * self.size[1]
        return pixels + STRIP_BYTES_PER_PIXEL * min(width * height, STRIP_PIXELS) + self._file_bytes


def open_with_pillow(data: bytes, image_format: str) -> Image.Image:
    """Opens a file of a known format.

    Raises:
        ImageError: Pillow cannot read it.
    """
    try:
        return Image.open(io.BytesIO(data), formats=(image_format,))
    except UnidentifiedImageError:
        raise ImageError(f"it is a damaged {image_format}, or of a kind that is not read") from None


def require_parts(count: int, name: str, limit: int = MAX_PARTS) -> None:
    """Checks the number of parts that a file consists of.

    Raises:
        ImageError: there are more than `limit`.
    """
    if count > limit:
        raise ImageError(f"it has more than {limit} {name}")
