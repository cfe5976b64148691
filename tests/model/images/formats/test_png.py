"""PNGs that are damaged, and those whose metadata are; transparency in every depth."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from model.images.errors import ImageError
from model.images.open_image import open_image
from model.images.preprocess import load_upright
from tests.support.image_files import SIGNATURE, chunk, noise, png_file, read_pixels
from tests.support.images import encoded

IMAGE = noise(120, 90)
GOOD = png_file(IMAGE)


# --- damaged pixels are never painted over


def with_pixels(compressed: bytes, after: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", 120, 90, 8, 2, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", compressed) + after + chunk(b"IEND", b"")


def compressed_rows() -> bytes:
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in IMAGE))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.33, 0.5, 0.99])
@pytest.mark.parametrize("exif", [b"", chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0")])
def test_damaged_pixels_are_refused(share: float, exif: bytes) -> None:
    rows = compressed_rows()
    place = max(2, int(share * len(rows)))
    damaged = rows[:place] + b"\xff" * 64 + rows[place + 64 :]
    with pytest.raises(ImageError):
        load_upright(open_image(with_pixels(damaged, exif)), 224)


def test_a_wrong_checksum_of_the_pixels_is_refused() -> None:
    with pytest.raises(ImageError):
        load_upright(open_image(with_pixels(compressed_rows()[:-4] + bytes(4))), 224)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_pixels_that_are_cut_short_are_refused(share: float) -> None:
    with pytest.raises(ImageError):
        load_upright(open_image(GOOD[: int(share * len(GOOD))]), 224)


@pytest.mark.parametrize("lost", [1, 11, 12, 15])
def test_a_file_that_lacks_only_its_end_is_read(lost: int) -> None:
    """The chunk IEND is 12 bytes long, and the checksum before it 4."""
    assert np.array_equal(read_pixels(GOOD[:-lost]), IMAGE)


def interlaced_rows(pixels: np.ndarray) -> bytes:
    """The seven passes, as section 8.1 of the specification lists them."""
    passes = [pixels[::8, ::8], pixels[::8, 4::8], pixels[4::8, ::4], pixels[::4, 2::4], pixels[2::4, ::2]]
    passes += [pixels[::2, 1::2], pixels[1::2]]
    return b"".join(b"\0" + row.tobytes() for part in passes for row in part if row.size)


def file_of_rows(rows: bytes, width: int, height: int, interlaced: bool, before: bytes = b"", depth: int = 8) -> bytes:
    """The chunks of a whole grey file, whose checksums are right whatever the number of rows."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, interlaced)
    compressed = zlib.compress(rows)
    half = len(compressed) // 2
    pixels = chunk(b"IDAT", compressed[:half]) + chunk(b"IDAT", compressed[half:])
    return SIGNATURE + chunk(b"IHDR", header) + before + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("black", [False, True])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("size", [(31, 40), (31, 41), (1, 1), (3, 2), (2, 3), (9, 1)])
def test_rows_that_the_stream_never_had_are_not_painted_black(
    size: tuple[int, int], interlaced: bool, black: bool
) -> None:
    """Checksums are right, and the stream has an end. Pictures that are black below are read."""
    pixels = noise(*size, 1) | 1
    if black:
        pixels[size[1] // 2 :] = 0
    rows = interlaced_rows(pixels) if interlaced else b"".join(b"\0" + row.tobytes() for row in pixels)
    assert np.array_equal(read_pixels(file_of_rows(rows, *size, interlaced))[..., 0], pixels)
    for missing in (1, len(rows) // 2, len(rows)):
        with pytest.raises(ImageError):
            load_upright(open_image(file_of_rows(rows[:-missing], *size, interlaced)), 224)


def test_a_palette_image_without_a_palette_is_refused() -> None:
    header = struct.pack(">IIBBBBB", 4, 1, 8, 3, 0, 0, 0)
    data = SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\1\2\3\1")) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="it has no palette"):
        open_image(data)


@pytest.mark.parametrize(("depth", "row", "value"), [(2, 0b00011011, 2), (4, 0x2A, 2)])
def test_bits_above_the_depth_of_a_transparent_grey_mean_nothing(depth: int, row: int, value: int) -> None:
    width = 8 // depth
    rows = bytes((0, row))
    low = file_of_rows(rows, width, 1, False, chunk(b"tRNS", struct.pack(">H", value)), depth)
    high = file_of_rows(rows, width, 1, False, chunk(b"tRNS", struct.pack(">H", 0xFF << depth & 0xFFFF | value)), depth)
    assert (read_pixels(low)[0, 2 if depth == 2 else 0] == 255).all()
    assert np.array_equal(read_pixels(high), read_pixels(low))


# --- metadata that are damaged, short or large


TEXT = b"key\0" + b"a" * 30
BOMB = zlib.compress(bytes(1_600_000))
ANCILLARY = {
    "pHYs": struct.pack(">IIB", 1, 1, 0),
    "gAMA": struct.pack(">I", 45455),
    "cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
    "sRGB": b"\0",
    "tIME": bytes(7),
    "tEXt": TEXT,
    "zTXt": b"key\0\0" + zlib.compress(b"text"),
    "iTXt": b"key\0\0\0\0\0text",
    "eXIf": b"MM\0*\0\0\0\x08\0\0",
    "iCCP": b"p\0\0" + zlib.compress(b"no profile"),
    "tRNS": bytes(6),
    "prIv": b"private",
    "acTL": struct.pack(">II", 2, 0),
    "fcTL": bytes(26),
    "fdAT": bytes(9),
}


@pytest.mark.parametrize("kind", ANCILLARY)
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_wrong_checksum_of_metadata_refuses_nothing(kind: str, place: str) -> None:
    damaged = chunk(kind.encode(), ANCILLARY[kind], damage=1)
    data = png_file(IMAGE, before=damaged) if place == "before" else png_file(IMAGE, after=damaged)
    assert np.array_equal(read_pixels(data), IMAGE)


@pytest.mark.parametrize("kind", [kind for kind in ANCILLARY if kind != "prIv"])
@pytest.mark.parametrize("length", [0, 1, 3])
def test_metadata_that_are_too_short_refuse_nothing(kind: str, length: int) -> None:
    data = png_file(IMAGE, before=chunk(kind.encode(), ANCILLARY[kind][:length]))
    assert np.array_equal(read_pixels(data), IMAGE)


@pytest.mark.parametrize(
    "large",
    [
        chunk(b"zTXt", b"key\0\0" + BOMB),
        chunk(b"iTXt", b"key\0\1\0\0\0" + BOMB),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
        chunk(b"iCCP", b"p\0\0" + BOMB),
        chunk(b"zTXt", b"key\0\7" + BOMB),
        chunk(b"zTXt", b"key\0\0" + BOMB) * 50,
    ],
    ids=["zTXt", "iTXt", "XMP", "raw EXIF", "iCCP", "unknown method", "80 MB in all"],
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_large_metadata_refuse_nothing(large: bytes, place: str) -> None:
    data = png_file(IMAGE, before=large) if place == "before" else png_file(IMAGE, after=large)
    assert np.array_equal(read_pixels(data), IMAGE)


def test_a_file_of_very_many_chunks_is_refused_by_name() -> None:
    assert np.array_equal(read_pixels(png_file(IMAGE, before=chunk(b"tEXt", TEXT) * 9000)), IMAGE)
    for many in (chunk(b"tEXt", TEXT), chunk(b"IDAT", b"")):
        with pytest.raises(ImageError, match="more than 10000 chunks"):
            open_image(png_file(IMAGE, before=many * 10_001))


def test_packets_are_decompressed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 10 MB may have 9000 that become a megabyte each."""
    calls: list[object] = []
    decompressobj = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", lambda: calls.append(None) or decompressobj())
    packed = zlib.compress(bytes(1000))
    packets = {
        b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0" + packed,
        b"zTXt": b"Raw profile type exif\0\0" + packed,
        b"iCCP": b"a\0\0" + packed,
    }
    open_image(png_file(IMAGE, before=b"".join(chunk(kind, packet) * 1000 for kind, packet in packets.items())))
    assert len(calls) == 3


def turned(image: np.ndarray) -> np.ndarray:
    """As people see it, if it is stored in orientation 6."""
    return image.swapaxes(0, 1)[:, ::-1]


EXIF = b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
RAW = b"\nexif\n" + str(len(EXIF) + 6).encode() + b"\n" + (b"Exif\0\0" + EXIF).hex().encode() + b"\n"
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    "orientation",
    [
        chunk(b"eXIf", EXIF),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW)),
        chunk(b"tEXt", b"Raw profile type exif\0" + RAW),
    ],
    ids=["eXIf", "XMP", "packed XMP", "packed raw profile", "raw profile"],
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_every_way_to_say_the_orientation_is_understood(orientation: bytes, place: str) -> None:
    data = png_file(IMAGE, before=orientation) if place == "before" else png_file(IMAGE, after=orientation)
    assert np.array_equal(read_pixels(data), turned(IMAGE))


# --- transparency


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white_in_every_depth(depth: int) -> None:
    highest = 2**depth - 1
    values = np.random.default_rng(0).integers(0, highest + 1, (40, 48))
    transparent = int(values[0, 0])
    if depth == 16:
        values[1, :] = transparent ^ 1  # another grey in 16 bits, the same one in 8
    data = png_file(values, depth, before=chunk(b"tRNS", struct.pack(">H", transparent)))
    expected = np.where(values == transparent, 255, (values * 255 / highest).round())
    assert np.abs(read_pixels(data)[..., 0] - expected).max() == 0


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_white_in_every_depth(depth: int) -> None:
    values = noise(48, 40, 3, np.uint8 if depth == 8 else np.uint16).astype(int)
    values[0] = values[0, 0]
    values[1] = values[0, 0] ^ np.array([0, 0, 1])
    data = png_file(values, depth, before=chunk(b"tRNS", struct.pack(">3H", *values[0, 0].tolist())))
    is_transparent = (values == values[0, 0]).all(axis=2)
    assert is_transparent[0].all() and not is_transparent[1].any()
    expected = np.where(is_transparent[..., None], 255, values >> (depth - 8))
    assert np.array_equal(read_pixels(data), expected)


@pytest.mark.slow
def test_transparency_is_kept_in_large_images() -> None:
    """Which are converted in strips."""
    values = np.random.default_rng(0).integers(0, 4, (1100, 1500))
    data = png_file(values, 2, before=chunk(b"tRNS", b"\0\1"))
    assert np.array_equal(read_pixels(data)[..., 0], np.where(values == 1, 255, values * 85))
    alpha = np.random.default_rng(0).integers(0, 256, (1100, 1500, 4), dtype=np.uint8)
    share = alpha[..., 3:] / 255
    expected = (alpha[..., :3] * share + 255 * (1 - share)).round()
    assert np.abs(read_pixels(encoded(alpha)) - expected).max() <= 1


def test_alpha_of_zero_everywhere_is_meant_in_a_png() -> None:
    assert (read_pixels(encoded(Image.new("RGBA", (8, 8), (200, 0, 0, 0)))) == 255).all()
