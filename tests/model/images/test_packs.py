"""Packs: written by the writer, read back as a folder is, and damaged in every way."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.images.errors import ImageError
from model.images.folders import find_images, labelled_images
from model.images.pack_writer import PackSummary, encode_small, write_pack
from model.images.packs import PackedImage, PackError, open_image_file, read_image_file


class Progress:
    def __init__(self) -> None:
        self.done = 0
        self.reasons: list[str] = []

    def advance(self) -> None:
        self.done += 1

    def skip(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.fixture(scope="module")
def folder(photographs: Mapping[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs in two classes: large and small, JPEG and PNG, one turned by EXIF, one broken."""
    root = tmp_path_factory.mktemp("zoo")
    (root / "cats").mkdir()
    (root / "things" / "cups").mkdir(parents=True)
    chelsea, coffee = photographs["chelsea"], photographs["coffee"]
    chelsea.save(root / "cats" / "large.jpg", quality=95)
    chelsea.resize((90, 60)).save(root / "cats" / "small é.png")
    chelsea.resize((90, 60)).save(root / "cats" / "small.jpg", quality=75, optimize=True)
    chelsea.resize((90, 60)).save(root / "cats" / "fine.JPG", quality=98)
    exif = Image.Exif()
    exif[0x0112] = 6
    coffee.save(root / "things" / "cups" / "turned.jpg", exif=exif, quality=90)
    coffee.resize((90, 60)).save(root / "things" / "cups" / "turned and small.jpg", exif=exif, quality=30)
    (root / "things" / "cups" / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return root


def pack(folder: Path, output: Path, part_bytes: int = 8000, progress: Progress | None = None) -> PackSummary:
    paths = find_images([folder]).images
    options = {"side": 80, "quality": 75, "part_bytes": part_bytes, "threads": 2}
    return write_pack(folder, paths, output, **options, progress=progress or Progress())  # type: ignore[arg-type]


@pytest.fixture
def packed(folder: Path, tmp_path: Path) -> Path:
    pack(folder, tmp_path / "zoo.pack")
    return tmp_path / "zoo.pack"


def test_a_pack_is_read_as_its_folder(folder: Path, tmp_path: Path) -> None:
    progress = Progress()
    summary = pack(folder, tmp_path / "zoo.pack", progress=progress)
    assert (summary.images, summary.kept, progress.done) == (6, 1, 6)
    [reason] = progress.reasons
    assert "torn.jpg: " in reason
    packed, files = labelled_images(tmp_path / "zoo.pack"), labelled_images(folder)
    names = [Path(path).relative_to(tmp_path / "zoo.pack").as_posix() for path in packed.paths]
    torn = "things/cups/torn.jpg"
    assert names == [name for path in files.paths if (name := Path(path).relative_to(folder).as_posix()) != torn]
    assert packed.classes == files.classes == ("cats", "things")
    assert packed.labels == [0, 0, 0, 0, 1, 1]
    assert find_images([tmp_path / "zoo.pack"])[0] == packed.paths


def test_images_are_upright_and_no_larger_than_asked(folder: Path, packed: Path) -> None:
    sizes = {}
    for path in find_images([packed])[0]:
        assert open_image_file(path).format == "JPEG"
        with Image.open(io.BytesIO(read_image_file(path))) as image:
            assert image.format == "JPEG" and image.mode == "RGB" and not image.getexif()
            sizes[Path(path).name] = image.size
            shown = np.asarray(image, dtype=float)
        original = Image.open(folder / Path(path).relative_to(packed)).convert("RGB")
        turned = original.transpose(Image.Transpose.ROTATE_270) if "turned" in path else original
        expected = np.asarray(turned.resize(sizes[Path(path).name], Image.Resampling.BICUBIC), dtype=float)
        assert np.abs(shown - expected).mean() < 6, path
    assert sizes == {
        "fine.JPG": (90, 60),
        "large.jpg": (120, 80),
        "small é.png": (90, 60),
        "small.jpg": (90, 60),
        "turned.jpg": (80, 120),
        "turned and small.jpg": (60, 90),
    }


def test_a_small_jpeg_is_kept_unless_encoding_it_saves_a_tenth(folder: Path) -> None:
    small, fine = folder / "cats" / "small.jpg", folder / "cats" / "fine.JPG"
    assert encode_small(str(small), 80, 75) == (small.read_bytes(), True)
    data, kept = encode_small(str(fine), 80, 75)
    assert not kept and len(data) < fine.stat().st_size
    assert not encode_small(str(small), 40, 75)[1]


def test_parts_are_bounded_zip_archives(folder: Path, tmp_path: Path) -> None:
    summary = pack(folder, tmp_path / "zoo.pack", part_bytes=5000)
    parts = sorted(tmp_path.glob("zoo.pack.*"))
    assert [part.name for part in parts] == [f"zoo.pack.{number:03d}" for number in range(summary.parts)]
    assert summary.parts > 1 and summary.bytes == sum(part.stat().st_size for part in parts)
    names = []
    for part in parts:
        assert part.stat().st_size <= 5000
        with zipfile.ZipFile(part) as archive:
            assert archive.testzip() is None
            names += archive.namelist()
    assert len(names) == 6 and "cats/small é.png" in names
    assert json.loads((tmp_path / "zoo.pack").read_text())["parts"] == [
        {"bytes": part.stat().st_size, "images": len(zipfile.ZipFile(part).namelist())} for part in parts
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zoo.pack", *(part.name for part in parts)]
    again = tmp_path / "again"
    again.mkdir()
    pack(folder, again / "zoo.pack", part_bytes=5000)
    assert all((again / part.name).read_bytes() == part.read_bytes() for part in parts)


def test_what_cannot_be_packed_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"cats/fine\.JPG needs \d+ bytes, and a part has 1000 at most"):
        pack(folder, tmp_path / "zoo.pack", part_bytes=1000)
    with pytest.raises(PackError, match=r"should end in \.pack"):
        pack(folder, tmp_path / "zoo.zip")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.jpg").write_bytes(b"")
    with pytest.raises(PackError, match=r"no image in .*torn can be read"):
        pack(tmp_path / "torn", tmp_path / "zoo.pack")
    assert [path.name for path in tmp_path.iterdir()] == ["torn"]


def test_a_pack_is_not_overwritten(folder: Path, packed: Path) -> None:
    with pytest.raises(PackError, match=r"zoo\.pack exists: remove"):
        pack(folder, packed)
    packed.unlink()
    with pytest.raises(PackError, match=r"zoo\.pack\.000 exists: remove"):
        pack(folder, packed)


def test_a_missing_or_changed_part_is_named(packed: Path) -> None:
    part = packed.with_name("zoo.pack.001")
    whole = part.read_bytes()
    part.write_bytes(whole[:-100])
    with pytest.raises(PackError, match=rf"zoo\.pack\.001 has {len(whole) - 100} bytes, .* says {len(whole)}"):
        find_images([packed])
    part.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(PackError, match=r"zoo\.pack\.001 is damaged"):
        find_images([packed])
    part.unlink()
    with pytest.raises(PackError, match=r"zoo\.pack\.001 is missing"):
        find_images([packed])
    packed.write_text("{}")
    with pytest.raises(PackError, match=r"zoo\.pack is no list of a pack"):
        find_images([packed])


def test_a_damaged_image_is_named_and_the_others_can_be_read(packed: Path) -> None:
    part = packed.with_name("zoo.pack.000")
    data = bytearray(part.read_bytes())
    data[600] ^= 1  # in the middle of the first image
    part.write_bytes(data)
    first, *others = find_images([packed])[0]
    with pytest.raises(ImageError, match=r"damaged in .*zoo\.pack\.000: Bad CRC-32"):
        open_image_file(first)
    with pytest.raises(OSError, match="damaged") as raised:
        read_image_file(first)
    assert raised.value.filename == first == f"{packed}/cats/fine.JPG"
    for path in others:
        assert isinstance(path, PackedImage)
        Image.open(io.BytesIO(read_image_file(path))).load()
