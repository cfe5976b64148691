"""Thumbnails, and sheets of them."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.images.errors import ImageError
from service.index.sheet import CAPTION, GAP, Cell, draw_sheet
from service.index.thumbnails import SIDE, encode_thumbnail, make_thumbnail


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_a_thumbnail_is_what_pillow_scales(photographs: dict[str, Image.Image]) -> None:
    photograph = photographs["coffee"]  # 600 x 400
    thumbnail = make_thumbnail(encoded(photograph, "PNG"))
    assert thumbnail.size == (SIDE, round(SIDE * 400 / 600))
    expected = photograph.resize(thumbnail.size, Image.Resampling.BICUBIC)
    np.testing.assert_allclose(np.asarray(thumbnail, float), np.asarray(expected, float), atol=1)
    with Image.open(BytesIO(encode_thumbnail(encoded(photograph, "JPEG", quality=95)))) as stored:
        assert (stored.format, stored.size) == ("JPEG", thumbnail.size)
        assert np.abs(np.asarray(stored, float) - np.asarray(expected, float)).mean() < 6


def test_a_thumbnail_is_upright_and_opaque(photographs: dict[str, Image.Image]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = make_thumbnail(encoded(photographs["coffee"], "JPEG", exif=exif, quality=95))
    assert turned.size == (round(SIDE * 400 / 600), SIDE)
    clear = make_thumbnail(encoded(Image.new("RGBA", (20, 10), (0, 0, 0, 0)), "PNG"))
    assert clear.size == (20, 10) and np.asarray(clear).min() == 255  # never scaled up, over white


def test_what_is_no_image_has_no_thumbnail() -> None:
    with pytest.raises(ImageError):
        make_thumbnail(b"no image")


def test_what_cannot_be_shown_is_a_box(tmp_path: Path) -> None:
    Image.new("RGB", (300, 300), (200, 10, 10)).save(tmp_path / "red.png")
    (tmp_path / "torn.png").write_bytes(b"no image")
    files = [str(tmp_path / "red.png"), str(tmp_path / "torn.png"), "s3://bucket/a.jpg", str(tmp_path / "gone.png")]
    sheet = draw_sheet([[Cell(file, "0.5") for file in files], [Cell(files[0], "a long name " * 10)]])
    assert sheet.shape == (GAP + 2 * (SIDE + CAPTION + GAP), GAP + 4 * (SIDE + GAP), 3)
    corners = [sheet[GAP + 1, GAP + 1 + column * (SIDE + GAP)].tolist() for column in range(4)]
    assert corners == [[200, 10, 10], *[[235, 235, 235]] * 3]
    boxes = [sheet[GAP : GAP + SIDE, GAP + column * (SIDE + GAP) :][:, :SIDE] for column in (1, 2, 3)]
    assert len({box.tobytes() for box in boxes}) == 3  # each says why
    assert (sheet[-GAP - CAPTION - SIDE :, GAP + SIDE + GAP + SIDE :] == 255).all()  # nothing beside a short row


def test_a_name_with_line_breaks_takes_one_line(tmp_path: Path) -> None:
    sheet = draw_sheet([[Cell(str(tmp_path / "a\nb\nc.jpg"), "query")], [Cell(str(tmp_path / "d.jpg"), "0.5")]])
    assert (sheet[GAP + SIDE + CAPTION + 2 : GAP + SIDE + CAPTION + GAP] == 255).all()  # between the two rows
