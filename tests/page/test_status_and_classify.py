"""The tabs Status and Classify."""

import json
import re
import urllib.request

from playwright.sync_api import expect

from .conftest import OpenVisit, StartServer, Visit
from .support import drop, example, file


def test_status_draws_what_metrics_count(visit: Visit) -> None:
    page = visit.open_reconstruct()
    page.locator("#tab-status").click()
    expect(page.locator("#engine-facts")).to_contain_text("openvino on cpu")
    expect(page.locator("#engine-facts")).to_contain_text("Parity, PSNR")
    expect(page.locator("#engine-facts")).to_contain_text(re.compile(r"with (1 thread|\d+ threads) each, batches"))
    expect(page.locator("#panel-status h2").first).to_contain_text("the last 4 minutes")
    expect(page.locator("#limit-facts")).to_contain_text("QUEUE_IMAGES512")
    expect(page.locator("#chart-queue .now")).to_have_text(re.compile("0 of 512"))
    for _ in range(5):
        request = urllib.request.Request(f"{visit.url}/embed", example("rocket"), {"content-type": "image/jpeg"})
        urllib.request.urlopen(request).read()
    expect(page.locator("#chart-images .now")).to_have_text(re.compile(r"[1-9]"))
    expect(page.locator("#chart-latency .now")).to_have_text(re.compile(r"p95 \d+ · p50 \d+ ms"))
    label = page.locator("#chart-images svg").get_attribute("aria-label") or ""
    assert re.fullmatch(r"Images per second: now [\d.]+; highest [\d.]+", label)
    expect(page.locator("#tray")).to_be_hidden()


def test_status_without_metrics_shows_what_info_gives(visit: Visit) -> None:
    body = json.dumps({"error": {"code": "not_found", "message": "GET /metrics: Not Found", "details": {}}})
    visit.page.route("**/metrics", lambda route: route.fulfill(status=404, body=body, content_type="application/json"))
    page = visit.open("#status")
    expect(page.locator("#no-metrics")).to_contain_text("/metrics cannot be read")
    expect(page.locator("#charts")).to_be_hidden()
    expect(page.locator("#engine-facts")).to_contain_text("mae_tiny@")
    visit.expect_errors("status of 404")


def test_without_a_head_there_is_no_tab_for_classes(visit: Visit) -> None:
    page = visit.open("#classify")
    expect(page.locator("#panel-reconstruct")).to_be_visible()
    expect(page.locator("#tab-classify")).to_be_hidden()


def test_classes_of_the_selected_image(start_server: StartServer, visit_server: OpenVisit) -> None:
    server = start_server(fake={"FAKE_HEAD": "night,dusk,day"})
    visit = visit_server(server)
    page = visit.open("#classify?image=rocket")
    request = urllib.request.Request(f"{server.url}/classify", example("rocket"), {"content-type": "image/jpeg"})
    with urllib.request.urlopen(request) as response:
        classes = json.load(response)["classifications"][0]["classes"]
    shown = page.locator("#classes li")
    expect(shown).to_have_count(3)
    assert shown.all_text_contents() == [f"{found['label']}{100 * found['probability']:.1f} %" for found in classes]
    assert classes[0]["label"] == "night"
    picture = page.locator("#classes-picture img")
    natural = "(image) => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"
    assert picture.evaluate(natural) == [500, 334]  # the file itself
    drop(page, [file("broken.jpg", b"nothing")])
    expect(page.locator("#alerts")).to_contain_text("broken.jpg: it ")
    expect(shown).to_have_count(0)
    expect(picture).to_have_count(0)
    page.evaluate("location.hash = '#classify?image=chelsea'")
    expect(page.locator("#classes-image")).to_have_text("chelsea.jpg")
    expect(shown).to_have_count(3)
    expect(page.locator("#alerts .notice")).to_have_count(0)
    visit.expect_errors("status of 400")
