"""Pixels -> a PNG file, at a tenth of the cost of an encoder that looks for the smallest file."""

from __future__ import annotations

import struct

import numpy as np
from isal import isal_zlib

from model.arrays import Bytes

SIGNATURE = b"\x89PNG\r\n\x1a\n"
BIT_DEPTH, COLOUR_TYPE = 8, 2  # RGB of eight bits each
UP = 2  # the filter that writes a byte's difference from the byte above
# ISA-L has levels 0 to 3: level 2 is little slower than 0, and 3 makes hardly any file smaller.
LEVEL = 2


def encode_png(pixels: Bytes) -> bytes:
    """Encodes pixels uint8 [H, W, 3] as a PNG file.

    Other encoders try five filters on every row, byte by byte, which costs more than the compression. One filter for
    all rows is a single subtraction in NumPy, and on photographs the file is as large as at Pillow's fastest level.
    """
    height, width, _ = pixels.shape
    rows = pixels.reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])  # modulo 256, as the format wants it
    header = struct.pack(">IIBBBBB", width, height, BIT_DEPTH, COLOUR_TYPE, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", isal_zlib.compress(filtered, LEVEL)), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(name, content) for name, content in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", isal_zlib.crc32(body))
