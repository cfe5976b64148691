"""WebP: its size is read before a decoder allocates its canvas, and metadata are kept from it.

Source: RFC 9649, WebP Image Format, 2.3 to 2.7 (RIFF container), 3.1 (lossless header); RFC 6386, 9.1 (frame header).
"""

from __future__ import annotations

import struct

from PIL import Image

from model.images.colour import MAX_PROFILE_BYTES, UNUSABLE
from model.images.errors import ImageError
from model.images.formats.base import StoredImage, open_with_pillow, require_parts
from model.images.orientation import read_orientation

CHUNKS_START = 12
PROFILE_FLAG, EXIF_FLAG, XMP_FLAG = 0x20, 0x08, 0x04
PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
MAX_XMP_BYTES = 1_000_000
BYTES_PER_PIXEL = 17.0
"""Measured: 16 for 24 megapixels, lossy and lossless, with and without alpha."""


class WebpImage(StoredImage):
    """A WebP; of an animation the first frame."""

    format = "WEBP"

    def __init__(self, data: bytes) -> None:
        """Reads the chunks.

        Raises:
            ImageError: the header is damaged, or there are too many chunks.
        """
        metadata: dict[bytes, bytes] = {}
        self._data = data
        if data[CHUNKS_START : CHUNKS_START + 4] == b"VP8X":
            self._data, metadata = _drop_metadata(data)
        elif int.from_bytes(data[4:8], "little") != len(data) - 8:  # decoders refuse a wrong length
            self._data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
        profile = metadata.get(b"ICCP")
        if profile is not None and not 0 < len(profile) <= MAX_PROFILE_BYTES:
            profile = UNUSABLE
        orientation = read_orientation(metadata.get(b"EXIF", b""), metadata.get(b"XMP ", b"")[:MAX_XMP_BYTES])
        super().__init__(_read_size(data), orientation, profile, len(data))

    def decode(self, least_side: int | None) -> tuple[Image.Image, tuple[float, float]]:
        """Decodes the first frame."""
        image = open_with_pillow(self._data, "WEBP")
        image.load()
        return image, image.size

    def decoder_bytes_per_pixel(self) -> float:
        """Libwebp's canvases and its decoder's buffer, two copies for Pillow, and the opaque image."""
        return BYTES_PER_PIXEL


def _read_size(data: bytes) -> tuple[int, int]:
    kind = data[CHUNKS_START : CHUNKS_START + 4]
    if len(data) >= 30 and kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if len(data) >= 30 and kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if len(data) >= 25 and kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise ImageError("its header is damaged or cut short")


def _drop_metadata(data: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """The file without profile, EXIF and XMP, and these three by the names of their chunks."""
    parts: list[bytes] = []
    metadata: dict[bytes, bytes] = {}
    position, count = CHUNKS_START, 0
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        end = position + 8 + length
        count += 1
        require_parts(count, "chunks")
        if kind == b"VP8X":
            body = bytearray(data[position : min(end, len(data))])
            if len(body) > 8:
                body[8] &= ~(PROFILE_FLAG | EXIF_FLAG | XMP_FLAG) & 0xFF
            parts.append(bytes(body))
        elif kind in PIXELS:
            parts.append(data[position : end + (end & 1)])
        elif kind not in metadata:
            metadata[kind] = data[position + 8 : end]
        position = end + (end & 1)  # chunks begin at even places
    body_bytes = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body_bytes)) + body_bytes, metadata
