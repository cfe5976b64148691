"""BMP, GIF, AVIF and HEIF: Pillow reads their header, without decoding a pixel.

Sources: Microsoft, BITMAPINFOHEADER, BITMAPV4HEADER and BITMAPV5HEADER; CompuServe, GIF89a.
"""

from __future__ import annotations

import re
import struct

from PIL import Image
from PIL.ImageFile import ImageFile

from model.images.colour import MAX_PROFILE_BYTES, UNUSABLE
from model.images.errors import ImageError
from model.images.formats.base import StoredImage, open_with_pillow, require_parts
from model.images.orientation import read_orientation

V5_HEADER_BYTES, EMBEDDED = 124, b"DEBM"
BLOCK = re.compile(rb"[!,;]")
"""The first byte of an extension, of a frame and of the end; decoders pass over others."""
GRAPHIC_CONTROL, DISPOSAL_METHOD, MAX_BLOCKS = 0xF9, 0x1C, 1_000_000


class PillowImage(StoredImage):
    """An image whose header Pillow reads."""

    bytes_per_pixel = 8.0
    """Pillow's image, and the opaque one that is made of it."""

    def __init__(self, data: bytes, file_bytes: int | None = None) -> None:
        """Reads the header.

        Raises:
            ImageError: it is damaged.
        """
        image = open_with_pillow(data, self.format)
        self._image: Image.Image | None = image
        profile = image.info.get("icc_profile")
        if profile is not None and not 0 < len(profile) <= MAX_PROFILE_BYTES:
            profile = UNUSABLE
        orientation = read_orientation(image.info.get("exif") or b"", image.info.get("xmp") or b"")
        super().__init__(image.size, orientation, profile, len(data) if file_bytes is None else file_bytes)

    def decode(self, least_side: int | None) -> tuple[Image.Image, tuple[float, float]]:
        """Decodes the first frame, once: the image then belongs to the caller, who may free it."""
        assert self._image is not None
        image, self._image = self._image, None
        image.load()
        return image, image.size

    def decoder_bytes_per_pixel(self) -> float:
        """As `bytes_per_pixel`."""
        return self.bytes_per_pixel


class BmpImage(PillowImage):
    """A BMP. Many programs write the fourth byte of each pixel as 0 and call it alpha."""

    format = "BMP"

    def __init__(self, data: bytes) -> None:
        """Reads the header, and the profile that only the fifth version has."""
        super().__init__(data)
        self.alpha_may_be_unused = True
        if len(data) > 142 and int.from_bytes(data[14:18], "little") == V5_HEADER_BYTES and data[70:74] == EMBEDDED:
            offset, length = struct.unpack_from("<II", data, 126)
            profile = data[14 + offset : 14 + offset + min(length, MAX_PROFILE_BYTES + 1)]
            self.profile = profile if 0 < len(profile) <= MAX_PROFILE_BYTES else UNUSABLE


class GifImage(PillowImage):
    """The first frame of a GIF."""

    format = "GIF"
    bytes_per_pixel = 10.0
    """Pillow's image and a part of it, that part in RGB, and the canvas."""

    def __init__(self, data: bytes) -> None:
        """Reads the header, without the comments before the first frame."""
        super().__init__(_drop_extensions(data), len(data))

    def decode(self, least_side: int | None) -> tuple[Image.Image, tuple[float, float]]:
        """Decodes the first frame; what it leaves of the canvas is white."""
        assert isinstance(self._image, ImageFile)
        frame = self._image.tile[0].extents if self._image.tile else None
        image, size = super().decode(least_side)
        if frame is None or frame == (0, 0, *image.size) or "transparency" in image.info:
            return image, size
        canvas = Image.new("RGB", image.size, "white")
        canvas.paste(image.crop(frame).convert("RGB"), frame[:2])
        return canvas, size


class AvifImage(PillowImage):
    """An AVIF; of a sequence the first frame."""

    format = "AVIF"
    bytes_per_pixel = 18.0
    """Measured: 14 for 24 megapixels with alpha in 8 bits; planes of 10 and 12 bits take 4 more."""


class HeifImage(PillowImage):
    """A HEIC or HEIF, by pillow-heif, which turns it upright itself."""

    format = "HEIF"
    bytes_per_pixel = 18.0
    """Measured: 11 for 6 megapixels with alpha in 8 bits; planes of 10 bits take more."""

    def __init__(self, data: bytes) -> None:
        """Reads the header."""
        super().__init__(data)
        self.orientation = 1


def _drop_extensions(data: bytes) -> bytes:
    """A GIF without extensions before its first frame but the one that belongs to the frame.

    What shall become of the frame afterwards is taken out of that one: Pillow would make a second image as large as the
    frame while it reads the header, before anybody knows how large that is.
    """
    if len(data) < 13:
        raise ImageError("its header is damaged or cut short")
    start = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    position, count, control = start, 0, b""
    while (block := BLOCK.search(data, position)) and block[0] == b"!":
        first, position = block.start(), block.start() + 2
        while position < len(data) and data[position]:
            count += 1
            position += 1 + data[position]
        position += 1
        count += 1
        require_parts(count, "blocks before its first frame", MAX_BLOCKS)
        if data[first + 1 : first + 2] == bytes((GRAPHIC_CONTROL,)):
            control = data[first:position]
    if len(control) > 3:
        control = control[:3] + bytes((control[3] & ~DISPOSAL_METHOD,)) + control[4:]
    return data[:start] + control + (data[block.start() :] if block else b"")
