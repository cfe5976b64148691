"""JPEGs without their end, with metadata of all kinds, and with more scans than anybody needs."""

import io
import struct
from collections.abc import Mapping

import numpy as np
import pytest
from PIL import Image

from model.images.errors import ImageError
from model.images.open_image import open_image
from model.images.preprocess import load_upright
from tests.support.image_files import add_scans, jpeg_file, noise, read_pixels

KINDS = {
    "baseline": {"quality": 85},
    "progressive": {"quality": 85, "progressive": True},
    "grey": {"quality": 85},
    "with restarts": {"quality": 85, "restart_marker_blocks": 7},
    "one pixel an entry": {"quality": 95, "subsampling": 0, "progressive": True},
}
ENDS = {
    "none": b"",
    "half": b"\xff",
    "zeros": b"\0\0",
    "four zeros": b"\0" * 4,
    "a sector of zeros": bytes(4096),
    "fill": b"\xff" * 20,
    "a line": b"\r\n",
}


@pytest.fixture(scope="module")
def files(photographs: Mapping[str, Image.Image]) -> dict[str, bytes]:
    """A file of each of `KINDS`."""
    image = photographs["chelsea"].convert("RGB")
    return {kind: jpeg_file(image.convert("L" if kind == "grey" else "RGB"), **KINDS[kind]) for kind in KINDS}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("least_side", [None, 30])
def test_a_file_that_lacks_only_its_end_is_read(
    files: dict[str, bytes], kind: str, end: str, least_side: int | None
) -> None:
    data = files[kind]
    assert data.endswith(b"\xff\xd9")
    assert np.array_equal(read_pixels(data[:-2] + ENDS[end], least_side), read_pixels(data, least_side))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.97, 0.99])
@pytest.mark.parametrize("padding", [b"", bytes(4096), b"\xff\xff", bytes(2)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_lacks_pixels_is_refused(files: dict[str, bytes], kind: str, share: float, padding: bytes) -> None:
    data = files[kind]
    with pytest.raises(ImageError):
        load_upright(open_image(data[: int(share * len(data))] + padding), None)


def test_a_file_that_lacks_whole_scans_or_intervals_is_refused(files: dict[str, bytes]) -> None:
    data = files["progressive"]
    scans = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for scan in scans[1:]:
        with pytest.raises(ImageError):
            load_upright(open_image(data[:scan]), None)
    data = files["with restarts"]
    restarts = [place for place in range(len(data)) if data[place] == 0xFF and 0xD0 <= data[place + 1] <= 0xD7]
    assert len(restarts) > 50
    for restart in restarts[5::20] + restarts[-3:]:
        with pytest.raises(ImageError):
            load_upright(open_image(data[:restart]), None)


@pytest.mark.parametrize("before", [b"\r\n", b"\n", bytes(16)])
def test_line_ends_and_zeros_before_a_file_are_skipped(files: dict[str, bytes], before: bytes) -> None:
    assert np.array_equal(read_pixels(before + files["baseline"]), read_pixels(files["baseline"]))


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


METADATA = {
    "EXIF of rubbish": segment(0xE1, b"Exif\0\0rubbish"),
    "MPF of rubbish": segment(0xE2, b"MPF\0rubbish"),
    "ICC of rubbish": segment(0xE2, b"ICC_PROFILE\0\1\1rubbish"),
    "an empty part of a profile": segment(0xE2, b"ICC_PROFILE\0"),
    "Photoshop's rubbish": segment(0xED, b"Photoshop 3.0\x008BIM\x04"),
    "comments": segment(0xFE, b"hello") * 3000,
    "fill bytes": b"\xff" * 100_000,
    "junk": b"no marker at all",
    "JFXX": segment(0xE0, b"JFXX\0\x10"),
    "a private segment": segment(0xEB, bytes(60_000)),
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("kind", ["baseline", "progressive"])
def test_metadata_cost_nothing(files: dict[str, bytes], name: str, kind: str) -> None:
    data = files[kind]
    assert data[:4] == b"\xff\xd8\xff\xe0"  # 18 bytes of JFIF follow the first two
    assert np.array_equal(read_pixels(data[:20] + METADATA[name] + data[20:]), read_pixels(data))


def test_a_file_of_very_many_segments_is_refused_by_name(files: dict[str, bytes]) -> None:
    data = files["baseline"]
    with pytest.raises(ImageError, match="more than 10000 segments"):
        open_image(data[:2] + segment(0xFE, b"") * 10_001 + data[2:])


@pytest.mark.parametrize("marker", [b"\xff\x01", b"\xff\xd0", b"\xff\0"])
def test_markers_without_a_length_count_as_segments(files: dict[str, bytes], marker: bytes) -> None:
    data = files["baseline"]
    with pytest.raises(ImageError, match="more than 10000 segments"):
        open_image(data[:2] + marker * 10_001 + data[2:])


def test_decoders_get_no_fill_bytes(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow reads them one by one: 20 MB took 20 seconds."""
    given: list[int] = []
    open_file = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **options: given.append(len(file.getvalue())) or open_file(file))
    data = files["baseline"]
    assert np.array_equal(read_pixels(data[:2] + b"\xff" * 1_000_000 + data[2:]), read_pixels(data))
    assert given == [len(data)] * 2


def test_exif_in_thousands_of_segments_is_joined() -> None:
    """The block is whole only with all of them: its directory is at the end."""
    block = b"MM\0*" + struct.pack(">I", 8 + 9000 * 100) + bytes(9000 * 100)
    block += b"\0\1" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
    parts = [block[start : start + 100] for start in range(0, len(block), 100)]
    data = jpeg_file(Image.new("L", (30, 20)))
    exif = b"".join(segment(0xE1, b"Exif\0\0" + part) for part in parts)
    assert open_image(data[:2] + exif + data[2:]).orientation == 6


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_how_the_channels_are_stored_is_still_told(mode: str) -> None:
    """By Adobe's segment, which is no metadata: without it, RGB would be read as YCbCr."""
    image = Image.fromarray(noise(32, 32, 4), "CMYK") if mode == "CMYK" else Image.fromarray(noise(32, 32))
    data = jpeg_file(image, quality=100, keep_rgb=mode == "RGB", comment=b"dropped")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(read_pixels(data), expected)


def test_scans_are_counted_before_decoding() -> None:
    """18.7 kB of 200 scans are read, and 259 kB of 900 are not: each scan passes over all pixels."""
    few = add_scans(200, (400, 300))
    assert (read_pixels(few) == 128).all()
    with pytest.raises(ImageError, match="scans; the limit is 300"):
        open_image(add_scans(900, (400, 300)))


def test_scans_of_many_pixels_are_weighed_together() -> None:
    data = bytearray(add_scans(100, (64, 64)))
    frame = data.index(b"\xff\xc2")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 7000, 7000)
    with pytest.raises(ImageError, match="scans of 7000 x 7000 pixels, which is too much work"):
        open_image(bytes(data))


def test_twelve_bits_are_named() -> None:
    data = bytearray(jpeg_file(Image.new("L", (8, 8))))
    data[data.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(ImageError, match="12 bits per channel"):
        open_image(bytes(data))


def test_orientation_comes_from_exif_or_xmp(files: dict[str, bytes]) -> None:
    data, exif = files["baseline"], Image.Exif()
    exif[0x0112] = 6
    xmp = segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>')
    turned = read_pixels(data).swapaxes(0, 1)[:, ::-1]
    for block in (segment(0xE1, exif.tobytes()), xmp):
        assert np.array_equal(read_pixels(data[:2] + block + data[2:]), turned)
