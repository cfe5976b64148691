"""Decoding an image to patches: resize and crop, and which images are refused."""

import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.errors import OutOfMemory, TooManyPixels, UndecodableImage, UnsupportedType
from tests.support.image_decoding import SMALL, cropped, decoded, decoder, farthest
from tests.support.image_files import png_of_rows
from tests.support.images import encoded


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (224, 224), (225, 224), (600, 300), (100, 80), (333, 777)])
def test_one_resize_does_what_resize_and_crop_do(chelsea: Image.Image, size: tuple[int, int]) -> None:
    image = chelsea.resize(size)
    found, expected = decoded(encoded(image)), cropped(image)
    # Rounding alone: between its two passes Pillow rounds, and which comes first depends on the sizes.
    assert farthest(found, expected) <= 2
    assert np.abs(found - expected.astype(int)).mean() < 0.2


def test_an_image_of_the_very_size_is_left_alone(chelsea: Image.Image) -> None:
    image = chelsea.resize((224, 224))
    assert np.array_equal(decoded(encoded(image)), np.asarray(image))


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (2048, 1366)])
def test_a_crop_fraction_leaves_a_margin(chelsea: Image.Image, size: tuple[int, int]) -> None:
    image = chelsea.resize(size)
    assert farthest(decoded(encoded(image), crop_fraction=0.875), cropped(image, short=256)) <= 2


@pytest.mark.parametrize("name", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_squashing_keeps_the_whole_picture(chelsea: Image.Image, name: str) -> None:
    expected = chelsea.resize((224, 224), Image.Resampling[name.upper()])
    assert np.array_equal(decoded(encoded(chelsea), resize="squash", filter=name), np.asarray(expected))


@pytest.mark.parametrize("turned", [False, True])
def test_a_line_of_pixels_becomes_its_middle(turned: bool) -> None:
    line = np.random.default_rng(1).integers(0, 256, (3000, 1, 3), dtype=np.uint8)
    middle = line[1490:1510]  # all that a bicubic filter around the middle can reach
    found, expected = decoded(encoded(oriented(line, turned))), cropped(oriented(middle, turned))
    assert farthest(found, expected) <= 1


def oriented(pixels: np.ndarray, turned: bool) -> Image.Image:
    return Image.fromarray(pixels.swapaxes(0, 1) if turned else pixels)


def test_a_single_pixel_fills_the_square() -> None:
    assert (decoded(encoded(Image.new("RGB", (1, 1), (1, 2, 3)))) == (1, 2, 3)).all()


def test_a_patch_is_ordered_by_row_column_channel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    patches = decoder(SMALL).decode(encoded(Image.fromarray(pixels)), 0).patches
    for patch, row, column, channel in ((0, 0, 0, 0), (0, 0, 1, 2), (1, 0, 0, 0), (6, 3, 5, 1), (15, 15, 15, 2)):
        down, across = divmod(patch, 4)
        expected = pixels[16 * down + row, 16 * across + column, channel]
        assert patches[patch, 48 * row + 3 * column + channel] == expected


# --- refusals


def test_a_header_that_claims_too_many_pixels_is_enough() -> None:
    with pytest.raises(TooManyPixels, match="image 2 has 40000 x 40000 pixels; the limit is 50000000") as refusal:
        decoder(max_pixels=50_000_000).decode(png_of_rows(40_000, 40_000, 8, 2, b""), 2)
    assert refusal.value.status == 413
    assert refusal.value.details == {"image": 2, "limit": 50_000_000}


def test_the_limit_itself_is_allowed() -> None:
    data = encoded(Image.new("L", (100, 50)))
    assert decoder(max_pixels=5000).decode(data, 0).size == (100, 50)
    with pytest.raises(TooManyPixels):
        decoder(max_pixels=4999).decode(data, 0)


@pytest.mark.live
def test_a_bomb_is_not_unpacked() -> None:
    """In a process of its own, whose memory is measured: 1.6 gigapixels in 200 kB of PNG, and of other formats."""
    script = """
        import io, resource, zlib
        from PIL import Image
        from tests.support.image_decoding import decoder
        from tests.support.image_files import png_of_rows
        from tests.support.images import encoded
        from service.errors import TooManyPixels

        packer = zlib.compressobj(1)
        rows = b"".join(packer.compress(bytes(5001)) for _ in range(40_000)) + packer.flush()
        bombs = [png_of_rows(40_000, 40_000, 1, 0, rows)]
        gif = bytearray(encoded(Image.new("P", (8, 8)), "GIF"))
        gif[6:10] = b"\\xff\\xff\\xff\\xff"
        bmp = bytearray(encoded(Image.new("RGB", (8, 8)), "BMP"))
        bmp[18:26] = (50_000).to_bytes(4, "little") * 2
        bombs += [bytes(gif), bytes(bmp)]
        d = decoder()
        d.decode(encoded(Image.new("RGB", (2000, 2000))), 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for bomb in bombs:
            try:
                d.decode(bomb, 0)
            except TooManyPixels:
                continue
            raise SystemExit("decoded")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 20_000, grown
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_images_are_undecodable(chelsea: Image.Image, form: str, share: float) -> None:
    data = encoded(chelsea, form)
    with pytest.raises(UndecodableImage, match="image 5") as refusal:
        decoder().decode(data[: int(len(data) * share)], 5)
    assert refusal.value.status == 400
    assert refusal.value.details == {"image": 5}


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", bytes(1000), b"{}" * 600])
def test_no_image_at_all_is_undecodable(data: bytes) -> None:
    with pytest.raises(UndecodableImage, match="image 0"):
        decoder().decode(data, 0)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
        (b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2", "a video"),
        (b"\xff\x0a\xfa\x7f\x01", "JPEG XL"),
    ],
)
def test_what_people_send_by_mistake_is_named(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedType, match=f"image 1 is {name}; served are JPEG, PNG") as refusal:
        decoder().decode(data + bytes(100), 1)
    assert refusal.value.status == 415
    assert refusal.value.details["image"] == 1


@pytest.mark.parametrize("form", ["ICO", "PPM", "JPEG2000", "PDF", "EPS"])
def test_what_else_pillow_reads_is_not_served(chelsea: Image.Image, form: str) -> None:
    with pytest.raises((UndecodableImage, UnsupportedType)):
        decoder().decode(encoded(chelsea, form), 0)


def test_a_lack_of_memory_is_not_the_fault_of_the_image(chelsea: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise MemoryError

    data = encoded(chelsea, "PNG")
    monkeypatch.setattr(Image.core, "fill", fail)
    monkeypatch.setattr(Image.core, "new", fail)
    with pytest.raises(OutOfMemory, match="no memory left to decode image 3") as refusal:
        decoder().decode(data, 3)
    assert (refusal.value.status, refusal.value.headers["retry-after"]) == (503, "5")
    assert "image" not in refusal.value.details  # or `on_error=skip` would leave it out
