"""`mae search`, beside brute force over the vectors of `mae embed`; its sheets, tables and thumbnails."""

import json
import os
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from service.index.sheet import CAPTION, GAP
from service.index.store import ImageIndex
from service.index.thumbnails import SIDE
from tests.service.cli.commands.indexes.conftest import by_cosine, cell, pixels, vectors_of
from tests.service.cli.conftest import Mae


def test_a_search_finds_what_brute_force_over_embedded_vectors_finds(mae: Mae) -> None:
    made = mae("index", "zoo", "-o", "photos.lance")
    assert made.code == 0
    assert made.out.splitlines() == [
        "photos.lance: vectors are whitened by the model's whitening of pool=mean",
        "photos.lance: 12 added, 0 replaced, 0 dropped, 0 unchanged, 0 skipped; 12 images, searched exactly",
    ]
    paths, vectors = vectors_of(mae, "--whiten")
    result = mae("search", "zoo/cats", "--index", "photos.lance", "-k", 4, "--format", "json")
    assert result.code == 0
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["path"] for line in lines] == paths[:6]
    for line, query in zip(lines, vectors, strict=False):
        order, cosine = by_cosine(vectors, query)
        assert [near["path"] for near in line["neighbours"]] == [paths[number] for number in order[:4]]
        assert [near["file"] for near in line["neighbours"]] == [os.path.abspath(paths[number]) for number in order[:4]]
        np.testing.assert_allclose([near["similarity"] for near in line["neighbours"]], cosine[:4], atol=1e-5)
    table = mae("search", "zoo/cats/0.png", "--index", "photos.lance", "-k", 2)
    assert table.code == 0 and "1.000   zoo/cats/0.png" in table.out


def test_a_table_in_a_pipe_has_whole_paths(mae: Mae, zoo: Path) -> None:
    folder = "a-folder-with-a-name-that-is-longer-than-the-lines-of-a-terminal-usually-are-" + "x" * 40
    (zoo / "cats").rename(zoo / folder)
    shutil.copy(zoo / folder / "0.png", zoo / folder / "copy.png")
    assert mae("index", "zoo", "-o", "photos.lance").code == 0
    found = mae("search", f"zoo/{folder}/0.png", "--index", "photos.lance", "-k", "2").out.splitlines()
    assert [line.split()[-1] for line in found if ".png" in line] == [
        f"zoo/{folder}/0.png",
        *(f"zoo/{folder}/{name}" for name in ("0.png", "copy.png")),
    ]
    groups = mae("duplicates", "--index", "photos.lance", "--threshold", "0.01").out
    assert f" zoo/{folder}/0.png" in groups and f" zoo/{folder}/copy.png" in groups


def test_thumbnails_are_stored_if_asked_for(mae: Mae) -> None:
    mae("index", "zoo/cats", "-o", "photos.lance", "--thumbnails")
    mae("index", "zoo/dogs", "-o", "photos.lance")
    index = ImageIndex.open(Path("photos.lance"))
    found = index.search(np.ones((1, 15), np.float32), 12, thumbnails=True)[0]
    assert {near.thumbnail is not None for near in found if "cats" in near.path} == {True}
    assert {near.thumbnail for near in found if "dogs" in near.path} == {None}
    [thumbnail] = [near.thumbnail for near in found if near.path == "zoo/cats/3.png"]
    assert thumbnail
    with Image.open(BytesIO(thumbnail)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (48, 40))


def test_a_sheet_shows_queries_and_neighbours(mae: Mae, zoo: Path) -> None:
    mae("index", "zoo", "-o", "photos.lance")
    (zoo / "cats" / "0.png").rename("query.png")
    result = mae("search", "query.png", "zoo/dogs/8.png", "--index", "photos.lance", "-k", 3, "--sheet", "found.png")
    assert result.code == 0
    sheet = pixels("found.png")
    assert sheet.size == (GAP + 4 * (SIDE + GAP), GAP + 2 * (SIDE + CAPTION + GAP))
    square = cell(sheet, 0, 0)
    top, left = (SIDE - 40) // 2, (SIDE - 48) // 2
    np.testing.assert_array_equal(square[top : top + 40, left : left + 48], np.asarray(pixels("query.png")))
    missing = cell(sheet, 0, 1)  # the nearest is the query itself, which is there no more
    assert (missing[:10] == 235).all()
    np.testing.assert_array_equal(cell(sheet, 1, 0), cell(sheet, 1, 1))
