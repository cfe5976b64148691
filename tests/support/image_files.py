"""Image files that Pillow does not write: chunks, tags, scans and profiles by hand."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from model.images.open_image import open_image
from model.images.preprocess import load_upright

SIGNATURE = b"\x89PNG\r\n\x1a\n"
Tag = tuple[int, int, Sequence[int] | bytes]
"""Number, type and values."""


def read_pixels(data: bytes, least_side: int | None = None) -> np.ndarray:
    """What is read from a file: upright, in sRGB, uint8 [H, W, 3]."""
    pixels = load_upright(open_image(data), least_side)
    return np.asarray(pixels.resize(pixels.image.size, Image.Resampling.NEAREST, (0, 0, *pixels.image.size)))


def noise(width: int, height: int, channels: int = 3, kind: type = np.uint8) -> np.ndarray:
    """Random values [H, W, channels]; [H, W] for one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, np.iinfo(kind).max + 1, shape, dtype=kind)


def chunk(kind: bytes, content: bytes, damage: int = 0) -> bytes:
    """A chunk of a PNG; its checksum is wrong by `damage`."""
    check = zlib.crc32(kind + content) ^ damage
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png_file(
    values: np.ndarray, depth: int = 8, colour_type: int | None = None, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A PNG of values [H, W] or [H, W, C]; `before` and `after` are chunks around the pixels."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels] if colour_type is None else colour_type
    if depth < 8:
        bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., -depth:].reshape(height, -1)
        packed = np.packbits(bits, axis=1)
    else:
        packed = values.astype(">u2" if depth == 16 else np.uint8).reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return SIGNATURE + chunk(b"IHDR", header) + before + pixels + after + chunk(b"IEND", b"")


def png_of_rows(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG whose header claims a size, whatever `rows` holds: what zlib gave for the rows and their filters."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def tiff_file(tags: Sequence[Tag], strips: Sequence[bytes], order: str = "<", tiled: bool = False) -> bytes:
    """A TIFF with `tags`, those of the strips or tiles added; `order` is the byte order for `struct`."""
    offsets, start = [], 8
    for strip in strips:
        offsets.append(start)
        start += len(strip) + len(strip) % 2
    content = b"".join(strip + bytes(len(strip) % 2) for strip in strips)
    places = (324, 325) if tiled else (273, 279)
    tags = [*tags, (places[0], 4, offsets), (places[1], 4, [len(strip) for strip in strips])]
    entries = sorted(tags, key=lambda tag: tag[0])
    arrays_start = start + 2 + 12 * len(entries) + 4
    directory, arrays = struct.pack(order + "H", len(entries)), b""
    for number, kind, values in entries:
        letter = {1: "B", 3: "H", 4: "I", 7: "B"}[kind]
        packed = values if isinstance(values, bytes) else struct.pack(f"{order}{len(values)}{letter}", *values)
        directory += struct.pack(order + "HHI", number, kind, len(values))
        if len(packed) > 4:
            directory += struct.pack(order + "I", arrays_start + len(arrays))
            arrays += packed + bytes(len(packed) % 2)
        else:
            directory += packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    return head + content + directory + bytes(4) + arrays


def add_scans(count: int, size: tuple[int, int]) -> bytes:
    """A progressive JPEG of `size`, grey, with `count` more scans than it needs."""
    data = jpeg_file(Image.new("L", size, 128), progressive=True, quality=50)
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def jpeg_file(image: Image.Image, **options: Any) -> bytes:
    """A JPEG."""
    image.save(out := io.BytesIO(), "JPEG", **options)
    return out.getvalue()


# --- ICC profiles (ICC.1:2022): a header, a table of tags, and the tags


def _profile(space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, content = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, tag in tags.items():
        table += name + struct.pack(">II", start + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(content), b"none", 0x02400000, b"mntr", space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + content


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(256 * gamma))


def _xyz(values: Sequence[float]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * value) for value in values))


def rgb_profile(primaries: Sequence[Sequence[float]], gamma: float) -> bytes:
    """A profile of three primaries, each in XYZ relative to D50, and one gamma."""
    tags = {name: _xyz(values) for name, values in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True)}
    return _profile(b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma)))


def grey_profile(gamma: float) -> bytes:
    """A profile of greys."""
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma), b"wtpt": _xyz((0.9642, 1, 0.8249))})


def cmyk_profile() -> bytes:
    """A profile of four inks, whose colours are a table of the 16 ways to print all or nothing of each."""
    identity = bytes(range(256))
    table = bytearray()
    for inks in np.ndindex(2, 2, 2, 2):
        cyan, magenta, yellow, black = inks
        lightness = 255 * (1 - 0.85 * black) * (1 - 0.35 * cyan) * (1 - 0.45 * magenta) * (1 - 0.1 * yellow)
        table += bytes((round(lightness), 128 - 40 * cyan + 70 * magenta, 128 - 45 * cyan + 85 * yellow))
    matrix = struct.pack(">9i", *(65536 * (n % 4 == 0) for n in range(9)))
    tag = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + 4 * identity + bytes(table) + 3 * identity
    return _profile(b"CMYK", b"Lab ", {b"A2B0": tag})


ADOBE_RGB = rgb_profile(((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)), 2.2)
DISPLAY_P3 = rgb_profile(((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)), 2.2)
PROPHOTO = rgb_profile(((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249)), 1.8)
