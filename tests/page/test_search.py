"""The tab Compare in front of a server with an index."""

import json
import subprocess
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from .conftest import BIN, OpenVisit, Server, StartServer, Visit
from .support import BROKEN, EXAMPLES, drop, example, file
from .test_layout import violations

NAMES = ("astronaut", "chelsea", "coffee", "rocket")


@pytest.fixture(scope="module")
def indexed(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The packaged model with an index of the examples and of copies with long names."""
    folder = tmp_path_factory.mktemp("indexes")
    for name in NAMES:
        (folder / "photos" / name).mkdir(parents=True)
        (folder / "photos" / name / f"{name}.jpg").write_bytes(example(name))
    for number in range(3):
        copy = folder / "photos" / "rocket" / f"DSC-2026-11-27-of-the-launch-{number}.jpg"
        copy.write_bytes((EXAMPLES / "rocket.jpg").read_bytes())
    index = folder / "photos.lance"
    command = [BIN / "mae", "index", folder / "photos", "-o", index, "--thumbnails", "--precision", "fp32"]
    subprocess.run(command, check=True, capture_output=True)
    return start_server(index=index, precision="fp32")


def search(server: Server, content: bytes, k: int) -> list[tuple[str, str]]:
    """Names without suffixes and cosines as the page writes them, by /search."""
    request = urllib.request.Request(f"{server.url}/search?k={k}", content, {"content-type": "image/jpeg"})
    with urllib.request.urlopen(request) as response:
        neighbours = json.load(response)["searches"][0]["neighbours"]
    return [(Path(one["name"]).stem, f"{one['similarity']:.3f}") for one in neighbours]


def shown(page: Page) -> list[tuple[str, str]]:
    entries = page.locator("#found li").all()
    return [(entry.locator(".name").text_content() or "", entry.locator("b").text_content() or "") for entry in entries]


def open_compare(visit: Visit) -> Page:
    page = visit.open("#compare")
    expect(page.locator("#found li").first).to_be_visible()
    return page


def test_the_nearest_images_of_the_index(visit_server: OpenVisit, indexed: Server) -> None:
    page = open_compare(visit_server(indexed))
    expect(page.locator("#index-title")).to_have_text("Nearest to chelsea.jpg in the index photos 7 images")
    assert shown(page) == search(indexed, example("chelsea"), 7)
    assert shown(page)[0] == ("chelsea", "1.000")
    page.locator('#tray-items [data-image="rocket"]').click()
    expect(page.locator("#found li").nth(1).locator("b")).to_have_text("1.000")
    assert shown(page) == search(indexed, example("rocket"), 7)
    page.locator("#found-count").fill("4")
    expect(page.locator("#found li")).to_have_count(4)
    expect(page.locator("#found-number")).to_have_text("4")
    loaded = "(images) => images.every((image) => image.complete && image.naturalWidth === 160)"
    assert page.locator("#found img").count() == 4
    assert page.locator("#found img").evaluate_all(loaded)


def test_an_image_of_ones_own(visit_server: OpenVisit, indexed: Server) -> None:
    visit = visit_server(indexed)
    page = open_compare(visit)
    drop(page, [file("mine.jpg", example("coffee"))])
    expect(page.locator("#found-of")).to_have_text("mine.jpg")
    expect(page.locator("#found li").first.locator(".name")).to_have_text("coffee")
    drop(page, [file("holiday.jpg", BROKEN)])
    expect(page.locator("#alerts")).to_contain_text("holiday.jpg: it cannot be decoded")
    expect(page.locator("#found li")).to_have_count(0)
    page.locator('#tray-items [data-image="coffee"]').click()
    expect(page.locator("#found li")).to_have_count(7)
    visit.expect_errors("status of 400")


def test_without_an_index_there_is_nothing_to_search(visit: Visit) -> None:
    page = visit.open("#compare")
    expect(page.locator("#map-items button")).to_have_count(4)
    expect(page.locator("#index-search")).to_be_hidden()


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (390, "dark"), (1280, "light"), (1280, "dark")])
def test_it_is_accessible_and_fits(visit_server: OpenVisit, indexed: Server, width: int, scheme: str) -> None:
    page = open_compare(visit_server(indexed, color_scheme=scheme, viewport={"width": width, "height": 900}))
    page.locator('#tray-items [data-image="rocket"]').click()
    expect(page.locator("#found li").nth(1).locator("b")).to_have_text("1.000")
    expect(page.locator("#found[aria-busy]")).to_have_count(0)
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert violations(page) == []
