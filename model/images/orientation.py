"""EXIF orientation: read from metadata, and applied to pixels.

Sources: EXIF 2.32 (CIPA DC-008), 4.6.2 and 4.6.4 A, tag 0x0112; TIFF 6.0, section 2, for the layout of its directory;
XMP specification part 2, `tiff:Orientation`.
"""

from __future__ import annotations

import re
import struct
from typing import TypeVar

from PIL import Image

N = TypeVar("N", int, float)
ORIENTATION = 0x0112
SHORT, LONG = 3, 4
"""Types of TIFF: two and four bytes."""
MAX_ENTRIES = 1000
"""Entries of a directory that are searched for the orientation; cameras write fewer than a hundred."""
EXIF_PREFIX, MAX_PREFIXES = b"Exif\0\0", 4
"""Broken writers repeat the prefix. Each removal copies the block, so megabytes of prefixes are not removed."""
TIFF_PREFIX = re.compile(rb"""xmlns:([\w.-]{1,64})\s{0,64}=\s{0,64}["']http://ns\.adobe\.com/tiff/1\.0/["']""")
XMP_ORIENTATION = rb"""(?<![\w.:-])%s:Orientation\s{0,64}(?:=\s{0,64}["']|>)\s{0,64}([0-9])\s{0,64}["'<]"""
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
ON_ITS_SIDE = (5, 6, 7, 8)
"""EXIF orientations in which the stored rows are columns of the upright image."""


def read_orientation(exif: bytes, xmp: bytes = b"") -> int:
    r"""The orientation that metadata give: EXIF first, then XMP; 1 (upright) where neither has a valid one.

    Damaged metadata count as none, as in every viewer.

    Args:
        exif: an EXIF block, with or without its prefix `Exif\0\0`.
        xmp: an XMP packet.
    """
    orientation = _exif_orientation(exif) if exif else None
    if orientation is None:
        orientation = _xmp_orientation(xmp) if xmp else 1
    return orientation if orientation in TRANSPOSITIONS else 1


def apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """Turns an image that is stored in an EXIF orientation upright."""
    return image.transpose(TRANSPOSITIONS[orientation]) if orientation in TRANSPOSITIONS else image


def upright_size(size: tuple[N, N], orientation: int) -> tuple[N, N]:
    """Width and height of an upright image that is stored with `size` in an EXIF orientation."""
    return size[::-1] if orientation in ON_ITS_SIDE else size


def _xmp_orientation(xmp: bytes) -> int:
    """The value of `Orientation` in TIFF's namespace, as an attribute or an element; 1 if there is none."""
    binding = TIFF_PREFIX.search(xmp)
    prefix = re.escape(binding[1]) if binding else b"tiff"
    match = re.search(XMP_ORIENTATION % prefix, xmp)
    return int(match[1]) if match else 1


def _exif_orientation(exif: bytes) -> int | None:
    """The value of the orientation's tag in the first directory; None if there is none."""
    for _ in range(MAX_PREFIXES):
        exif = exif.removeprefix(EXIF_PREFIX)
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (offset,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, offset)
        for entry in range(offset + 2, offset + 2 + 12 * min(count, MAX_ENTRIES), 12):
            tag, kind, values = struct.unpack_from(order + "HHI", exif, entry)
            if tag == ORIENTATION:
                if values != 1 or kind not in (SHORT, LONG):
                    return 1
                value: int = struct.unpack_from(order + ("H" if kind == SHORT else "I"), exif, entry + 8)[0]
                return value
    except struct.error:
        return None
    return None
