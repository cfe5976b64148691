"""The tab Compare."""

import io
import json
import math
import re
import urllib.request
from zipfile import ZipFile

from playwright.sync_api import Page, expect

from .conftest import Server, Visit
from .support import BROKEN, drop, example, file

NAMES = ("astronaut", "chelsea", "coffee", "rocket")


def whitened_vector(server: Server, content: bytes) -> list[float]:
    url = f"{server.url}/embed?whiten=true"
    with urllib.request.urlopen(urllib.request.Request(url, content, {"content-type": "image/jpeg"})) as response:
        return list(json.load(response)["embeddings"][0])


def cosine(first: list[float], second: list[float]) -> float:
    dot = sum(one * other for one, other in zip(first, second, strict=True))
    return dot / math.dist(first, [0] * len(first)) / math.dist(second, [0] * len(second))


def open_compare(visit: Visit) -> Page:
    page = visit.open("#compare")
    expect(page.locator("#map-items button")).to_have_count(4)
    return page


def test_neighbours_are_the_nearest_by_cosine(visit: Visit, server: Server) -> None:
    page = open_compare(visit)
    vectors = {name: whitened_vector(server, example(name)) for name in NAMES}
    page.locator('#map-items button[title="coffee.jpg"]').hover()
    expect(page.locator("#neighbours-of")).to_have_text("coffee.jpg")
    others = [name for name in NAMES if name != "coffee"]
    nearest = sorted(others, key=lambda name: -cosine(vectors["coffee"], vectors[name]))
    expected = [f"{name}.jpg{cosine(vectors['coffee'], vectors[name]):.3f}" for name in nearest]
    assert page.locator("#neighbours li").all_text_contents() == expected
    assert page.locator("#map-lines line").count() == 3
    page.locator("#neighbour-count").fill("1")
    expect(page.locator("#neighbours li")).to_have_count(1)
    page.locator('#map-items button[title="rocket.jpg"]').focus()
    expect(page.locator("#neighbours-of")).to_have_text("rocket.jpg")
    label = page.locator('#map-items button[title="rocket.jpg"]').get_attribute("aria-label") or ""
    assert re.fullmatch(r"rocket\.jpg, nearest: \w+\.jpg, cosine -?0\.\d\d", label)


def test_thirty_dropped_files_with_one_broken(visit: Visit) -> None:
    page = open_compare(visit)
    files = [file(f"{NAMES[index % 4]}-{index}.jpg", example(NAMES[index % 4])) for index in range(29)]
    drop(page, [*files[:13], file("holiday.jpg", BROKEN), *files[13:]])
    expect(page.locator("#map-items button")).to_have_count(33, timeout=60_000)
    expect(page.locator("#alerts")).to_contain_text("Left out: holiday.jpg: it cannot be decoded")
    assert "-12.jpg" not in (page.locator("#alerts").text_content() or "")
    groups = page.locator("#duplicates li")
    expect(groups).to_have_count(4)  # each example and its copies
    assert sorted(len((text or "").split(",")) for text in groups.all_text_contents()) == [8, 8, 8, 9]
    expect(page.locator("#map-items button[data-group]")).to_have_count(33)


def test_pictures_on_the_map_do_not_hide_each_other(visit: Visit) -> None:
    page = open_compare(visit)
    drop(page, [file(f"copy-{index}.jpg", example("rocket")) for index in range(8)])
    expect(page.locator("#map-items button")).to_have_count(12)
    boxes = [box for box in (button.bounding_box() for button in page.locator("#map-items button").all()) if box]
    assert len(boxes) == 12
    for first in range(12):
        for second in range(first):
            one, other = boxes[first], boxes[second]
            apart = [abs(one[axis] - other[axis]) >= one["width"] - 1 for axis in ("x", "y")]
            assert any(apart), (first, second)


def test_the_export_is_what_the_projector_reads(visit: Visit, server: Server) -> None:
    page = open_compare(visit)
    drop(page, [file("twin.jpg", example("rocket"))])
    expect(page.locator("#map-items button")).to_have_count(5)
    with page.expect_download() as download:
        page.locator("#export").click()
    path = download.value.path()
    with ZipFile(io.BytesIO(path.read_bytes())) as archive:
        assert archive.testzip() is None
        tensors = [list(map(float, line.split("\t"))) for line in archive.read("tensors.tsv").decode().splitlines()]
        metadata = [line.split("\t") for line in archive.read("metadata.tsv").decode().splitlines()]
        config = archive.read("projector_config.pbtxt").decode()
        assert archive.read("sprite.png")[16:24] == (192).to_bytes(4, "big") * 2  # 3 x 3 pictures of 64 pixels
    assert metadata == [
        ["name", "duplicates"],
        *([f"{name}.jpg", ""] for name in NAMES[:3]),
        ["rocket.jpg", "1"],
        ["twin.jpg", "1"],
    ]
    assert max(abs(a - b) for a, b in zip(tensors[2], whitened_vector(server, example("coffee")), strict=True)) < 1e-5
    assert 'tensor_path: "tensors.tsv"' in config and "single_image_dim: 64" in config
