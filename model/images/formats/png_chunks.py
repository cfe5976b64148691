"""The chunks of a PNG: those that pixels need, and what is asked of the others.

Decoders fail on damaged, short or large ancillary chunks, though the pixels are whole. So they get a file without them.

Source: Portable Network Graphics (PNG) Specification, Third Edition (W3C, 2025), 5.3 (chunks), 11.2 and 11.3.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass, field

from model.images.colour import MAX_PROFILE_BYTES, UNUSABLE
from model.images.errors import ImageError
from model.images.formats.base import require_parts

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEAD = struct.Struct(">I4s")
HEADER = struct.Struct(">IIBBBBB")
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column, first row, and the distances of columns and rows of each pass of an interlaced image (8.1)."""
BLOCK_BYTES, MAX_BLOCK_BYTES = 1 << 14, 1 << 20
"""Compressed bytes that are decompressed at once, and the most that they become."""
SMALL_CHUNK = 1024
"""Encoders write image data in chunks of 8 kB or more; smaller ones count among the parts that are limited."""
ANCILLARY = (b"tRNS", b"eXIf", b"iCCP", b"iTXt", b"tEXt", b"zTXt")
"""Chunks that are asked for something."""
END_CHUNK = b"\0\0\0\0IEND\xae\x42\x60\x82"
MAX_TEXT_BYTES = 1_000_000
XMP_KEYWORD, RAW_EXIF_KEYWORDS = b"XML:com.adobe.xmp", (b"Raw profile type exif", b"Raw profile type APP1")
NOT_HEXADECIMAL = re.compile(rb"[^0-9a-fA-F]")


@dataclass
class PngHeader:
    """What the chunks say; `data` is the file without those that pixels do not need."""

    size: tuple[int, int]
    depth: int
    colour_type: int
    interlaced: bool
    data: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""
    profile: bytes | None = None
    decompressed: set[bytes] = field(default_factory=set)
    """The metadata that were decompressed. A file has each of them once, and another thousand would cost seconds."""
    transparent: tuple[int, ...] | None = None
    """The value of the transparent grey, or of the three channels of the transparent colour, in the file's depth."""


def read_header(data: bytes) -> PngHeader:
    """Reads all chunks of a file that begins with `SIGNATURE`.

    Raises:
        ImageError: the header is damaged, or there are too many chunks.
    """
    start = len(SIGNATURE)
    if data[start + 4 : start + 8] == b"CgBI":
        raise ImageError("it is a PNG that Xcode has changed (CgBI), which is not read")
    if data[start + 4 : start + 8] != b"IHDR" or len(data) < start + 25:
        raise ImageError("its header is damaged or cut short")
    width, height, depth, colour_type, _, _, interlace = HEADER.unpack_from(data, start + 8)
    header = PngHeader((width, height), depth, colour_type, bool(interlace))
    kept: list[tuple[int, int]] = [(0, start + 25)]
    position, count, is_clean, has_pixels, has_palette = start + 25, 0, True, False, False
    while position + 8 <= len(data):
        length, kind = HEAD.unpack_from(data, position)
        end = position + 12 + length
        if kind == b"IEND" or (has_pixels and not kind.isalpha()):
            break
        if kind == b"IDAT":
            has_pixels = True
            count += length < SMALL_CHUNK
        else:
            count += 1
        require_parts(count, "chunks beside its pixels")
        has_palette = has_palette or kind == b"PLTE"
        is_alpha_of_palette = kind == b"tRNS" and colour_type == PALETTE
        if kind in (b"IDAT", b"PLTE") or (is_alpha_of_palette and _is_intact(data, position, end)):
            _keep(kept, position, min(end, len(data)))
        else:
            is_clean = False
            _read_ancillary(header, kind, data, position, end)
        position = end
    if not has_pixels:
        raise ImageError("it has no pixels: it is damaged or cut short")
    if colour_type == PALETTE and not has_palette:
        raise ImageError("it has no palette: it is damaged")
    # Behind a chunk that is cut short, decoders would read an end as its content.
    end_chunk = END_CHUNK if position <= len(data) else b""
    header.data = data if is_clean else b"".join([*(data[first:last] for first, last in kept), end_chunk])
    return header


def has_all_rows(header: PngHeader) -> bool:
    """Whether the compressed pixels are as many bytes as the size needs."""
    missing, unpacker = _count_pixel_bytes(header), zlib.decompressobj()
    view, position = memoryview(header.data), len(SIGNATURE)
    while position + 8 <= len(view):
        length, kind = HEAD.unpack_from(view, position)
        if kind == b"IDAT":
            content = view[position + 8 : position + 8 + length]
            for first in range(0, len(content), BLOCK_BYTES):
                compressed: bytes | memoryview = content[first : first + BLOCK_BYTES]
                while compressed and not unpacker.eof:
                    missing -= len(unpacker.decompress(compressed, MAX_BLOCK_BYTES))
                    compressed = unpacker.unconsumed_tail
                if missing <= 0:
                    return True
        position += 12 + length
    return missing - len(unpacker.flush()) <= 0


def _count_pixel_bytes(header: PngHeader) -> int:
    """Bytes of all rows, each with its filter."""
    bits = header.depth * {RGB: 3, GREY_ALPHA: 2, RGBA: 4}.get(header.colour_type, 1)
    width, height = header.size
    count = 0
    for left, top, across, down in ADAM7 if header.interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            count += rows * (1 + -(-columns * bits // 8))
    return count


def _keep(kept: list[tuple[int, int]], first: int, last: int) -> None:
    """Adds a chunk to those that are kept; neighbours become one."""
    if kept[-1][1] == first:
        kept[-1] = (kept[-1][0], last)
    else:
        kept.append((first, last))


def _is_intact(data: bytes, position: int, end: int) -> bool:
    """Whether a chunk is whole and its checksum right."""
    view = memoryview(data)
    return end <= len(data) and zlib.crc32(view[position + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])


def _transparent_value(colour_type: int, depth: int, content: bytes) -> tuple[int, ...] | None:
    channels = {GREY: 1, RGB: 3}.get(colour_type, 0)
    if not channels or len(content) < 2 * channels:
        return None
    used = 2**depth - 1  # the other bits mean nothing
    return tuple(value & used for value in struct.unpack_from(f">{channels}H", content))


def _read_ancillary(header: PngHeader, kind: bytes, data: bytes, position: int, end: int) -> None:
    """Keeps what is asked of a chunk that decoders do not get: transparency, orientation and profile."""
    if kind not in ANCILLARY:
        return
    if not _is_intact(data, position, end):
        if kind == b"iCCP":
            header.profile = UNUSABLE
        return
    content = data[position + 8 : end - 4]
    if kind == b"tRNS":
        header.transparent = _transparent_value(header.colour_type, header.depth, content)
        return
    if kind == b"eXIf":
        header.exif = content
        return
    keyword, _, rest = content.partition(b"\0")
    name = kind if kind == b"iCCP" else keyword
    if name in header.decompressed or name not in (b"iCCP", XMP_KEYWORD, *RAW_EXIF_KEYWORDS):
        return
    header.decompressed.add(name)
    if kind == b"iCCP":
        compressed = rest[1:] if rest[:1] == b"\0" else b""
        header.profile = _decompress(compressed, MAX_PROFILE_BYTES) or UNUSABLE
    elif kind == b"iTXt" and keyword == XMP_KEYWORD and len(rest) > 2:
        text = rest[2:].split(b"\0", 2)[-1]  # after language and translated keyword
        header.xmp = _decompress(text, MAX_TEXT_BYTES) if rest[0] else text[:MAX_TEXT_BYTES]
    elif keyword in RAW_EXIF_KEYWORDS and not header.exif:  # as ImageMagick writes it: name, length, hexadecimal
        text = _decompress(rest[1:], MAX_TEXT_BYTES) if kind == b"zTXt" else rest[:MAX_TEXT_BYTES]
        digits = NOT_HEXADECIMAL.sub(b"", b"".join(text.split(b"\n")[3:]))
        header.exif = bytes.fromhex(digits[: len(digits) // 2 * 2].decode("ascii"))


def _decompress(compressed: bytes, limit: int) -> bytes:
    """At most `limit` bytes; empty if there are more, or if the stream is damaged."""
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(compressed, limit)
    except zlib.error:
        return b""
    return content if unpacker.eof else b""
