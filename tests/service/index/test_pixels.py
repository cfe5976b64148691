"""Signatures of images, how they are compared, and near-duplicates by pixels."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from model.arrays import Floats
from service.index.duplicates import find_duplicates
from service.index.pixels import PixelComparison
from service.index.signatures import SIDE, make_signature
from service.index.store import ImageIndex
from service.index.table import IndexRow
from tests.service.index.conftest import describe


def scene(seed: int) -> Image.Image:
    """A picture with coarse and fine shapes, 300 x 200."""
    rng = np.random.default_rng(seed)
    waves = np.zeros((200, 300, 3))
    for side in (4, 8, 16, 32):
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        waves += np.asarray(noise.resize((300, 200), Image.Resampling.BICUBIC), float) / 4
    return Image.fromarray(np.clip(128 + 1.6 * (waves - 128), 0, 255).astype(np.uint8))


def encode(image: Image.Image, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **({"quality": 90} | options))
    return out.getvalue()


VERSIONS = {
    "resized": lambda image: encode(image.resize((150, 100))),
    "recompressed": lambda image: encode(image, quality=30),
    "cropped": lambda image: encode(image.crop((15, 10, 285, 190))),
    "cropped at one corner": lambda image: encode(image.crop((0, 0, 270, 180))),
    "mirrored": lambda image: encode(ImageOps.mirror(image)),
    "mirrored and cropped": lambda image: encode(ImageOps.mirror(image).crop((15, 10, 285, 190))),
    "grey": lambda image: encode(image.convert("L")),
    "darker": lambda image: encode(ImageEnhance.Brightness(image).enhance(0.7)),
    "framed": lambda image: encode(ImageOps.expand(image, 40, "white")),
}


def compare(first: bytes, second: bytes) -> float:
    signatures = np.stack(
        [np.frombuffer(make_signature(data), np.uint8).reshape(SIDE, SIDE) for data in (first, second)]
    )
    return float(PixelComparison(signatures).correlations(np.array([0]), np.array([1]))[0])


def test_a_signature_is_the_grey_picture_by_pillow() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8))
    out = io.BytesIO()
    picture.save(out, "PNG")
    expected = picture.resize((SIDE, SIDE), Image.Resampling.BOX).convert("L")
    assert make_signature(out.getvalue()) == expected.tobytes()


@pytest.mark.parametrize("version", VERSIONS)
def test_versions_of_a_picture_agree_and_other_pictures_do_not(version: str) -> None:
    changed = VERSIONS[version](scene(0))
    assert compare(encode(scene(0)), changed) >= 0.8
    assert compare(changed, encode(scene(0))) >= 0.8
    assert compare(encode(scene(1)), changed) <= 0.6


def test_upside_down_is_no_version() -> None:
    assert compare(encode(scene(0)), encode(ImageOps.flip(scene(0)))) <= 0.6


def test_plain_pictures_do_not_agree() -> None:
    white, grey = (encode(Image.new("RGB", (100, 100), colour)) for colour in ("white", "grey"))
    assert compare(white, white) == pytest.approx(0, abs=1e-6)
    assert compare(white, grey) == pytest.approx(0, abs=1e-6)


def test_different_objects_before_one_background_do_not_agree() -> None:
    first, second = (Image.new("RGB", (200, 200), "white") for _ in range(2))
    ImageDraw.Draw(first).ellipse((50, 50, 150, 150), "black")
    ImageDraw.Draw(second).rectangle((30, 80, 170, 120), "black")
    assert compare(encode(first), encode(second)) <= 0.6


def index_of(folder: Path, vectors: Floats) -> ImageIndex:
    """The index of the files 0.jpg, 1.jpg, … of a folder."""
    index = ImageIndex.create(folder / "photos.lance", describe(vectors.shape[1]))
    index.add([IndexRow(str(folder / f"{i}.jpg"), f"{i}.jpg", vector, 100 - i, 1) for i, vector in enumerate(vectors)])
    return index


def test_pixels_decide_and_vectors_where_a_file_is_gone(tmp_path: Path) -> None:
    """Vectors call 2 and 3, and 4 and 5 near-duplicates; pixels 0 and 1, and 2 and 6. The file 4 is gone."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    vectors[3] = vectors[2] + 0.001
    vectors[5] = vectors[4] + 0.001
    for number in range(60):
        (tmp_path / f"{number}.jpg").write_bytes(encode(scene(number)))
    (tmp_path / "1.jpg").write_bytes(VERSIONS["mirrored"](scene(0)))
    (tmp_path / "6.jpg").write_bytes(VERSIONS["cropped"](scene(2)))
    (tmp_path / "4.jpg").unlink()
    index = index_of(tmp_path, vectors)
    found = find_duplicates(index)
    groups = {tuple(image.path for image in group): group for group in found.groups}
    assert set(groups) == {("0.jpg", "1.jpg"), ("2.jpg", "6.jpg"), ("4.jpg", "5.jpg")}
    assert found.unread == 1
    assert [image.pixels for image in groups["4.jpg", "5.jpg"]] == [None, None]
    for image in groups["0.jpg", "1.jpg"]:
        unit = vectors[:2] / np.linalg.norm(vectors[:2], axis=1, keepdims=True)
        assert image.similarity == pytest.approx(float(unit[0] @ unit[1]), abs=1e-5)
        assert image.pixels is not None and 0.77 <= image.pixels <= 1
    strict = find_duplicates(index, threshold=0.01)  # vectors must be near, too
    assert [[image.path for image in group] for group in strict.groups] == [["4.jpg", "5.jpg"]]
    loose = find_duplicates(index, pixels=1)
    assert [[image.path for image in group] for group in loose.groups] == [["4.jpg", "5.jpg"]]


def test_vectors_decide_on_plain_pictures(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    vectors[1] = vectors[0]
    for number in range(60):
        (tmp_path / f"{number}.jpg").write_bytes(encode(Image.new("RGB", (40, 40), "white")))
    found = find_duplicates(index_of(tmp_path, vectors))
    assert ["0.jpg", "1.jpg"] in [[image.path for image in group] for group in found.groups]
    assert {image.pixels for group in found.groups for image in group} == {None}
