"""PNG: pixels by Pillow, and the transparent colour of tRNS in the file's own depth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile

from model.arrays import Bytes
from model.images.errors import ImageError
from model.images.formats.base import StoredImage, open_with_pillow
from model.images.formats.png_chunks import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, has_all_rows, read_header
from model.images.opaque import Flags, scale_to_bytes, whiten
from model.images.orientation import read_orientation

WHITE_16 = 65535


class PngImage(StoredImage):
    """A PNG; of an animation the default image."""

    format = "PNG"

    def __init__(self, data: bytes) -> None:
        """Reads the chunks.

        Raises:
            ImageError: they are damaged or too many.
        """
        self._header = header = read_header(data)
        super().__init__(header.size, read_orientation(header.exif, header.xmp), header.profile, len(data))

    def decode(self, least_side: int | None) -> tuple[Image.Image, tuple[float, float]]:
        """Decodes the pixels; those of a transparent grey or colour are white."""
        image = open_with_pillow(self._header.data, "PNG")
        image.load()
        self._require_rows(image)
        transparent = self._header.transparent
        if transparent is not None:
            image = self._whiten_grey(image, *transparent) if len(transparent) == 1 else self._whiten_colour(image)
        return image, image.size

    def decoder_bytes_per_pixel(self) -> float:
        """Pillow's image, and the opaque one that is made of it."""
        header = self._header
        stored = {GREY: 2, RGB: 4, PALETTE: 5, GREY_ALPHA: 8, RGBA: 8}.get(header.colour_type, 8)
        if header.depth == 16 and header.colour_type == GREY:
            stored = 3
        if header.transparent is not None:
            stored *= 2
        return stored

    def _require_rows(self, image: Image.Image) -> None:
        """Checks that the last row that is stored is there: Pillow leaves rows that are missing at 0.

        A row with any other value was stored, so only images with an empty row are decompressed once more.
        """
        last = image.height - 1
        if self._header.interlaced and image.height > 1:
            last -= 1 - last % 2  # the last pass has the odd rows
        row = image.crop((0, last, image.width, last + 1)).tobytes()
        if not any(row) and not has_all_rows(self._header):
            raise ImageError("its rows are not all there: it is damaged or cut short")

    def _whiten_grey(self, image: Image.Image, value: int) -> Image.Image:
        if self._header.depth < 16:
            level = value * 255 // (2**self._header.depth - 1)  # Pillow has scaled the pixels to eight bits
            return whiten(image.convert("L"), lambda pixels, top: pixels == level)
        stored = image

        def is_transparent(pixels: Bytes, top: int) -> Flags:
            rows: NDArray[np.uint16] = np.asarray(stored.crop((0, top, stored.width, top + len(pixels))))
            flags: Flags = rows == value
            return flags

        return whiten(scale_to_bytes(stored, WHITE_16), is_transparent)

    def _whiten_colour(self, image: Image.Image) -> Image.Image:
        transparent = self._header.transparent
        if self._header.depth < 16:
            return whiten(image, lambda pixels, top: (pixels == transparent).all(axis=2))
        # Pillow keeps the upper byte of each channel. Read in the other byte order, it keeps the lower one.
        lower = open_with_pillow(self._header.data, "PNG")
        assert isinstance(lower, ImageFile)
        lower.tile = [tile._replace(args="RGB;16L") for tile in lower.tile]
        lower.load()
        upper_value, lower_value = zip(*(divmod(channel, 256) for channel in transparent or ()), strict=True)

        def is_transparent(pixels: Bytes, top: int) -> Flags:
            low = np.asarray(lower.crop((0, top, lower.width, top + len(pixels))))
            flags: Flags = ((pixels == upper_value) & (low == lower_value)).all(axis=2)
            return flags

        return whiten(image, is_transparent)
