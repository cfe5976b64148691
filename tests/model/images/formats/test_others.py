"""WebP, BMP, GIF, HEIF, and the names of what is not read."""

import io
import struct
import sys

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from model.images import open_image as module
from model.images.errors import ImageError, PixelLimitError, UnknownFormatError
from model.images.folders import LeftOut, find_images
from model.images.open_image import open_image, readable_formats, readable_suffixes
from tests.support.image_files import noise, png_file, read_pixels
from tests.support.images import encoded

IMAGE = noise(40, 30)
OPTIONS = {"lossless": True, "quality": 100, "exact": True}


# --- WebP


def webp(**options: object) -> bytes:
    return encoded(Image.fromarray(IMAGE), "WEBP", **OPTIONS, **options)


@pytest.mark.parametrize("size", [0, 4, 2**31, 2**32 - 1])
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0rubbish"])
def test_a_webp_with_a_wrong_length_is_read(size: int, exif: bytes) -> None:
    data = webp(exif=exif)
    assert np.array_equal(read_pixels(data[:4] + struct.pack("<I", size) + data[8:]), IMAGE)


@pytest.mark.parametrize("kind", [b"EXIF", b"XMP ", b"ICCP", b"junk"])
def test_metadata_of_a_webp_cost_nothing(kind: bytes) -> None:
    data = webp(exif=b"Exif\0\0rubbish")
    assert np.array_equal(read_pixels(data + kind + struct.pack("<I", 7) + b"rubbish\0"), IMAGE)
    with pytest.raises(ImageError, match="more than 10000 chunks"):
        open_image(data + (kind + bytes(4)) * 10_001)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}, {"lossless": True, "exif": b"Exif\0\0MM"}])
def test_the_size_of_a_webp_is_read(options: dict) -> None:
    data = encoded(Image.fromarray(IMAGE), "WEBP", **options)
    assert open_image(data).size == (40, 30)


def test_the_size_of_a_large_webp_is_read_before_it_is_decoded() -> None:
    bomb = encoded(Image.new("RGB", (16383, 3051)), "WEBP", lossless=True, method=0)
    assert len(bomb) < 100
    assert open_image(bomb).size == (16383, 3051)


def test_a_webp_is_turned_by_exif_or_xmp() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    expected = IMAGE.swapaxes(0, 1)[:, ::-1]
    assert np.array_equal(read_pixels(webp(exif=exif)), expected)
    assert np.array_equal(read_pixels(webp(xmp=b'<x tiff:Orientation="6"/>')), expected)


# --- BMP


def bitmap(header_bytes: int, alpha: int) -> bytes:
    """32 bits a pixel with four masks, in a header of version 3, 4 or 5."""
    rows = np.dstack([IMAGE[::-1, :, ::-1], np.full((30, 40), alpha, np.uint8)]).tobytes()
    masks = struct.pack("<IIII", 0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", header_bytes, 40, 30, 1, 32, 3, len(rows), 0, 0, 0, 0) + masks
    header = header.ljust(header_bytes, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(rows), 0, 0, 14 + len(header)) + header + rows


@pytest.mark.parametrize("header_bytes", [56, 108, 124])
def test_a_fourth_byte_of_zero_is_no_alpha_in_a_bitmap(header_bytes: int) -> None:
    with Image.open(io.BytesIO(bitmap(header_bytes, 0))) as image:
        assert image.mode == "RGBA"
    assert np.array_equal(read_pixels(bitmap(header_bytes, 0)), IMAGE)
    assert np.array_equal(read_pixels(bitmap(header_bytes, 255)), IMAGE)
    over_white = IMAGE * (51 / 255) + 255 * (204 / 255)
    assert np.abs(read_pixels(bitmap(header_bytes, 51)) - over_white).max() <= 1


# --- GIF


def test_what_the_first_frame_of_a_gif_leaves_of_the_canvas_is_white() -> None:
    """As a browser over white, with and without a transparent colour."""
    image = Image.fromarray(np.full((10, 12), 7, np.uint8)).convert("P")
    image.putpalette(bytes((value + 1) % 256 for value in range(768)))
    frame = np.asarray(image.convert("RGB"))
    for options in ({}, {"transparency": 9}):
        data = bytearray(encoded(image, "GIF", **options))
        data[6:10] = struct.pack("<HH", 30, 20)
        place = data.index(b"\x2c" + struct.pack("<HHHH", 0, 0, 12, 10))
        data[place + 1 : place + 5] = struct.pack("<HH", 5, 4)
        expected = np.full((20, 30, 3), 255, np.uint8)
        expected[4:14, 5:17] = frame
        assert np.array_equal(read_pixels(bytes(data)), expected)


def test_extensions_of_a_gif_cost_nothing() -> None:
    image = Image.fromarray(IMAGE).quantize(16)
    data = encoded(image, "GIF", transparency=3)
    start = 13 + (3 << (data[10] & 7) + 1)
    comments = (b"\x21\xfe" + b"\xffx" * 1 + b"y" * 254 + b"\0") * 2000
    assert np.array_equal(read_pixels(data[:start] + comments + data[start:]), read_pixels(data))
    assert (read_pixels(data)[np.asarray(image) == 3] == 255).all()
    with pytest.raises(ImageError, match="more than 1000000 blocks"):
        open_image(data[:start] + b"\x21\xfe" + b"\1x" * 1_000_001 + b"\0" + data[start:])
    with pytest.raises(ImageError, match="more than 1000000 blocks"):
        open_image(data[:start] + b"\x21\xfe\0" * 1_000_001 + data[start:])


@pytest.mark.parametrize("between", [b"", b"bytes that decoders pass over"])
@pytest.mark.parametrize("method", range(8))
def test_the_header_of_a_gif_with_a_huge_frame_costs_no_memory(
    monkeypatch: pytest.MonkeyPatch, between: bytes, method: int
) -> None:
    """Pillow prepares what comes after the frame while it reads the header: an image as large as the frame."""
    monkeypatch.setattr(Image.core, "fill", lambda *arguments: pytest.fail(f"an image is made: {arguments}"))
    screen = struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)
    control = b"\x21\xf9\4" + bytes((method << 2 | 1,)) + bytes(4)
    frame = struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\2\x4c\1\0;"
    image = open_image(b"GIF89a" + screen + between + control + b"," + frame, max_pixels=1000)
    assert image.size == (65535, 65535)
    with pytest.raises(PixelLimitError):
        image.require_pixels(None)


# --- HEIF


def smooth() -> Image.Image:
    return Image.merge("RGB", [Image.linear_gradient("L").rotate(turn).resize((128, 96)) for turn in (0, 90, 180)])


@pytest.fixture(scope="module")
def heic() -> bytes:
    out = io.BytesIO()
    pillow_heif.from_pillow(smooth()).save(out, quality=95)
    return out.getvalue()


def test_heic_is_read_with_the_extra(heic: bytes) -> None:
    assert np.abs(read_pixels(heic) - np.asarray(smooth()).astype(int)).mean() < 2
    assert "HEIF" in readable_formats() and ".heic" in readable_suffixes()
    with pytest.raises(ImageError):
        read_pixels(heic[: len(heic) // 2])


def test_heic_without_the_extra_names_it(heic: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    module.can_read_heif.cache_clear()
    try:
        with pytest.raises(UnknownFormatError, match=r"it is HEIC, which needs .*pip install pillow-heif"):
            open_image(heic)
        assert "HEIF" not in readable_formats() and ".heic" not in readable_suffixes()
    finally:
        monkeypatch.undo()
        module.can_read_heif.cache_clear()


def test_heic_in_folders_is_found_with_the_extra(heic: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("telephone")
    (folder / "IMG_0001.HEIC").write_bytes(heic)
    found = find_images([folder])
    assert (found.images, found.refused, found.left_out) == ([str(folder / "IMG_0001.HEIC")], [], LeftOut())


# --- what is not read


def box(brand: bytes, compatible: bytes = b"") -> bytes:
    return struct.pack(">I4s4sI", 16 + len(compatible), b"ftyp", brand, 0) + compatible


NAMES = {
    "a camera raw": [
        b"II*\0\x10\0\0\0CR\2\0",
        b"IIRO\x08\0\0\0",
        b"IIRS\x08\0\0\0",
        b"MMOR\0\0\0\x08",
        b"IIU\0\x18\0\0\0",
        b"FUJIFILMCCD-RAW 0201",
        b"FOVb\0\0\2\0",
        b"\0MRM\0\0",
        box(b"crx ", b"crx isom"),
    ],
    "a video": [
        box(b"isom", b"isomiso2avc1mp41"),
        box(b"qt  ", b"qt  "),
        box(b"mp42"),
        b"\x1a\x45\xdf\xa3\x01\0\0\0webm",
        b"RIFF\0\0\0\0AVI LIST",
        b"\0\0\1\xba\x44",
    ],
    "JPEG XL": [b"\xff\x0a\xfa\x7f\x01", b"\0\0\0\x0cJXL \r\n\x87\n"],
    "JPEG 2000": [b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51\0"],
    "PDF": [b"%PDF-1.7\n"],
    "PostScript": [b"%!PS-Adobe-3.0 EPSF-3.0\n"],
    "SVG": [
        b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"<!--" + b"x" * 30_000 + b"-->\n<svg/>",
        b"\xef\xbb\xbf  <svg/>",
    ],
    "an HTML page": [b"<!DOCTYPE html><html></html>", b"\n <html lang='en'>"],
    "XML": [b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"],
    "a Photoshop document": [b"8BPS\0\1"],
    "an icon": [b"\0\0\1\0\1\0\x10\x10", b"icns\0\0\0\x10"],
    "OpenEXR": [b"v/1\1\2\0\0\0"],
    "DDS": [b"DDS \x7c\0\0\0"],
    "DICOM": [bytes(128) + b"DICM\2\0"],
    "a ZIP archive": [b"PK\3\4\x14\0"],
    "gzip": [b"\x1f\x8b\x08\0"],
    "a tar archive": [b"a.jpg".ljust(257, b"\0") + b"ustar\0"],
    "a Git LFS pointer": [b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"],
    "Netpbm": [b"P6\n4 3\n255\n" + bytes(36), b"P7\nWIDTH 4\n"],
    "base64 text": [
        b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    ],
    "a data URI": [b"data:image/png;base64,iVBORw0KGgo="],
    "a URL": [b"https://example.org/a.jpg", b"s3://bucket/a.jpg"],
    "a NumPy array": [b"\x93NUMPY\1\0"],
    "FITS": [b"SIMPLE  =                    T"],
}


@pytest.mark.parametrize(("name", "head"), [(name, head) for name, heads in NAMES.items() for head in heads])
def test_what_is_not_read_is_named(name: str, head: bytes) -> None:
    with pytest.raises(UnknownFormatError) as error:
        open_image(head + (b"" if name in ("base64 text", "a URL") else bytes(100)))
    assert error.value.kind is not None
    assert error.value.kind.startswith(name)


@pytest.mark.parametrize("data", [b"", b"hello", b"{}" * 600, bytes(1000), b"RIFF\0\0\0\0XXXX", b"abc" * 9])
def test_what_nobody_knows_has_no_name(data: bytes) -> None:
    with pytest.raises(UnknownFormatError) as error:
        open_image(data)
    assert error.value.kind is None


def test_avif_with_a_general_brand_is_read() -> None:
    data = encoded(Image.fromarray(IMAGE), "AVIF", quality=100, subsampling="4:4:4")
    brand = data.index(b"avif", 4)
    assert brand == 8
    assert open_image(data[:8] + b"mif1" + data[12:]).format == "AVIF"


def test_a_png_of_xcode_is_named() -> None:
    data = png_file(IMAGE)
    with pytest.raises(ImageError, match="CgBI"):
        open_image(data[:8] + b"\0\0\0\4CgBI\x50\0\x20\2\x2b\xd5\xb3\x7f" + data[8:])
