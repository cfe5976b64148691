"""The tab Anomaly, the spread over several masks, and which patches carry a score."""

import json
import re
import struct
import subprocess
import urllib.request
import zlib
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from .conftest import BIN, OpenVisit, Server, StartServer, Visit
from .support import BROKEN, EXAMPLES, drop, example, file

PICTURE_SHOWN = "(image) => image.complete && image.naturalWidth"


def post(server: Server, path: str, content: bytes, accept: str = "application/json") -> Any:
    request = urllib.request.Request(f"{server.url}/{path}", content, {"content-type": "image/jpeg", "accept": accept})
    return urllib.request.urlopen(request)


def stripes() -> bytes:
    """A PNG of 64 x 64 pixels that is like no photograph: green and magenta columns."""
    row = b"\0" + b"\0\xff\0\xff\0\xff" * 32
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(row * 64)), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def expect_score(page: Page, score: float) -> None:
    shown = page.locator("#anomaly-score")
    expect(shown).to_have_text(re.compile(r"\d"))
    assert abs(float(shown.text_content() or "") - score) <= 0.006 * score


def test_raw_scores_without_a_fit(visit: Visit, server: Server) -> None:
    page = visit.open("#anomaly?image=coffee")
    with post(server, "anomaly?method=reconstruction&seed=7", example("coffee")) as response:
        expect_score(page, json.load(response)["anomalies"][0]["score"])
    expect(page.locator("#anomaly-unfit")).to_contain_text("mae anomaly fit FOLDER")
    expect(page.locator("#anomaly-verdict")).to_have_text("none")
    expect(page.locator("#anomaly-meaning")).to_contain_text("Each patch is predicted from the others")
    expect(page.get_by_label("features")).to_be_disabled()
    expect(page.get_by_label("mask", exact=True)).to_be_disabled()
    picture = page.locator("#anomaly-picture")
    expect(picture).to_have_attribute("alt", re.compile("^overlay of coffee.jpg, score"))
    assert picture.evaluate(PICTURE_SHOWN) == 224
    page.get_by_label("expected").check()
    expect(picture).to_have_attribute("alt", re.compile("^expected of coffee.jpg"))
    expect(page).to_have_url(f"{server.url}/#anomaly?image=coffee&method=reconstruction&view=expected")
    page.evaluate("location.hash = '#anomaly?image=astronaut&view=heatmap'")  # a link that is followed in the open page
    expect(picture).to_have_attribute("alt", re.compile("^heatmap of astronaut.jpg"))
    drop(page, [file("holiday.jpg", BROKEN)])
    expect(page.locator("#alerts")).to_contain_text("holiday.jpg: it ")
    expect(picture).to_be_hidden()
    page.locator('[data-image="rocket"]').click()
    expect(picture).to_have_attribute("alt", re.compile("rocket.jpg"))
    expect(page.locator("#alerts .notice")).to_have_count(0)
    visit.expect_errors("status of 400")


def test_a_fit_on_normal_images(start_server: StartServer, visit_server: OpenVisit, tmp_path: Path) -> None:
    fitted = tmp_path / "fitted.safetensors"
    fit = [BIN / "mae", "anomaly", "fit", EXAMPLES, "-o", fitted]
    subprocess.run(fit, check=True, capture_output=True)
    server = start_server(weights=fitted)
    page = visit_server(server).open("#anomaly?image=coffee")
    expect(page.get_by_label("features")).to_be_checked()
    expect(page.locator("#anomaly-unfit")).to_be_hidden()
    expect(page.locator("#anomaly-meaning")).to_contain_text("nearest one of normal images")
    expect(page.locator("#anomaly-verdict")).to_have_text("normal")  # it is one of the normal images

    def expect_threshold(query: str) -> None:
        with post(server, f"anomaly?{query}", example("coffee")) as response:
            threshold = json.load(response)["threshold"]
        expect(page.locator("#anomaly-threshold")).to_have_text(f"{threshold:.3g}")

    expect_threshold("false_alarms=0.01")
    page.locator("#false-alarms").select_option("0.1")
    expect_threshold("false_alarms=0.1")
    drop(page, [file("stripes.png", stripes(), "image/png")])
    expect(page.locator("#anomaly-verdict")).to_have_text("anomalous")
    page.get_by_label("mask", exact=True).check()
    expect(page.locator("#anomaly-picture")).to_have_attribute(
        "alt", re.compile("^mask of stripes.png, .*, anomalous$")
    )


def test_all_images_by_score(visit: Visit, server: Server) -> None:
    page = visit.open("#anomaly")
    drop(page, [file("holiday.jpg", BROKEN)])
    page.locator("#rank").click()
    names = ("astronaut", "chelsea", "coffee", "rocket")
    scores = {}
    for name in names:
        with post(server, "anomaly?method=reconstruction&seed=7", example(name)) as response:
            scores[name] = json.load(response)["anomalies"][0]["score"]
    expect(page.locator("#ranking li")).to_have_count(4, timeout=60_000)
    order = [re.sub(r"\.jpg.*", "", text) for text in page.locator("#ranking li").all_text_contents()]
    assert order == sorted(names, key=lambda name: -scores[name])
    expect(page.locator('[data-notice="ranking"]')).to_contain_text("Left out: holiday.jpg: it ")
    page.locator("#ranking button").first.click()
    expect(page.locator("#anomaly-name")).to_have_text(f"{order[0]}.jpg")
    visit.expect_errors("status of 400")


def test_the_spread_of_eight_masks(visit: Visit, server: Server) -> None:
    page = visit.open_reconstruct("image=coffee&ratio=0.5&strategy=random&seed=3")
    page.locator("#draw-spread").click()
    with post(server, "reconstruct?mask_ratio=0.5&seed=3&draws=8&view=spread", example("coffee")) as response:
        spread = [value for value in json.load(response)["reconstructions"][0]["spread"] if value is not None]
    mean = sum(spread) / len(spread)
    expect(page.locator("#spread-text")).to_have_text(f"8 masks, seeds 3 to 10: mean spread {mean:.1f} of 255 levels")
    assert page.locator("#spread-picture").evaluate(PICTURE_SHOWN) == 224
    page.locator("#clear").click()
    expect(page.locator("#spread")).to_be_hidden()
    expect(page.locator("#draw-spread")).to_be_disabled()
    expect(page.locator("#spread-hint")).to_be_visible()


def test_which_patches_make_two_images_similar(visit: Visit) -> None:
    page = visit.open("#compare")
    page.locator('#map-items button[title="coffee.jpg"]').click()
    page.mouse.move(1, 1)
    nearest = (page.locator("#neighbours .label").first.text_content() or "").strip()
    page.locator("#explain-similarity").click()
    figure = page.locator(".explanation").filter(has_text=f"Cosine of coffee.jpg with {nearest}")
    expect(figure).to_contain_text("red patches raise it")
    assert figure.locator("img").evaluate(PICTURE_SHOWN) == 224
    page.locator('#map-items button[title="rocket.jpg"]').click()
    expect(figure).to_be_hidden()


def test_which_patches_carry_a_class(start_server: StartServer, visit_server: OpenVisit) -> None:
    server = start_server(fake={"FAKE_HEAD": "night,dusk,day", "FAKE_S": "0.001"})
    visit = visit_server(server)
    page = visit.open("#classify?image=rocket")
    page.locator("#explain-class").click()
    figure = page.locator("#classes-column figure")
    expect(figure).to_contain_text(re.compile(r"Probability of night, \d+\.\d %: red patches raise it"))
    assert figure.locator("img").evaluate(PICTURE_SHOWN) == 224
    page.locator('[data-image="chelsea"]').click()
    expect(figure).to_be_hidden()
