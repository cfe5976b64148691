"""Accessibility by axe-core, and widths and zoom without sideways scrolling."""

import os
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from .conftest import OpenVisit, Server, Visit
from .support import BROKEN, drop, file

AXE = Path(os.environ.get("AXE", Path(__file__).parents[2] / ".venv-page/node_modules/axe-core/axe.min.js"))
TABS = ("reconstruct", "compare", "anomaly", "status")
RUN = "() => axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] })"
# Width and height in CSS pixels: a telephone, a desktop, the desktop zoomed to 200 % and 400 %, a large screen.
SIZES = {"390": (390, 844), "1280": (1280, 900), "200 %": (640, 450), "400 %": (320, 225), "1920": (1920, 1080)}


def open_tab(visit: Visit, tab: str) -> Page:
    page = visit.open(f"#{tab}")
    expect(page.locator("#tabs [aria-selected=true]")).to_have_attribute("data-tab", tab)
    page.wait_for_timeout(500)
    return page


def violations(page: Page) -> list[tuple[str, list[str]]]:
    page.evaluate(AXE.read_text())
    return [(found["id"], [node["html"] for node in found["nodes"]]) for found in page.evaluate(RUN)["violations"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("tab", TABS)
def test_axe_finds_nothing(visit_server: OpenVisit, server: Server, tab: str, width: int, scheme: str) -> None:
    visit = visit_server(server, color_scheme=scheme, viewport={"width": width, "height": 900})
    assert violations(open_tab(visit, tab)) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_what_appears_later(visit_server: OpenVisit, server: Server, scheme: str) -> None:
    visit = visit_server(server, color_scheme=scheme)
    page = visit.open_reconstruct("image=coffee&view=error")
    page.locator("#clear").click()
    page.locator('#grid [data-index="9"]').click()
    page.locator("#seed").fill("no number")
    page.get_by_text("The request").click()
    drop(page, [file("holiday.jpg", BROKEN), file("notes.txt", b"", "text/plain")])
    expect(page.locator("#alerts .notice")).to_have_count(2)
    assert violations(page) == []
    page.locator("#key-button").click()
    assert violations(page) == []
    visit.expect_errors("status of 400")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tab", TABS)
def test_nothing_scrolls_sideways(visit_server: OpenVisit, server: Server, tab: str, size: str) -> None:
    width, height = SIZES[size]
    visit = visit_server(server, viewport={"width": width, "height": height})
    page = open_tab(visit, tab)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    hidden = """() => [...document.querySelectorAll("button, input, select, a, summary")]
      .filter((element) => element.checkVisibility() && !element.closest("#tray-items, #tabs, .visually-hidden, .skip"))
      .filter((element) => element.getBoundingClientRect().right > innerWidth + 1)
      .map((element) => element.outerHTML)"""
    assert page.evaluate(hidden) == []


def test_cells_that_are_too_small_can_be_enlarged(visit_server: OpenVisit, server: Server) -> None:
    visit = visit_server(server, viewport={"width": 320, "height": 600})
    page = visit.open_reconstruct()
    cell = page.locator('#grid [data-index="0"]')
    assert cell.bounding_box()["width"] < 24  # type: ignore[index]
    page.locator("#zoom").check()
    assert cell.bounding_box()["width"] >= 24  # type: ignore[index]
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_a_telephone_needs_no_larger_cells(visit_server: OpenVisit, server: Server) -> None:
    visit = visit_server(server, viewport={"width": 390, "height": 844}, has_touch=True)
    page = visit.open_reconstruct()
    assert page.locator('#grid [data-index="0"]').bounding_box()["width"] >= 24  # type: ignore[index]
    expect(page.locator("#zoom-choice")).to_be_hidden()


def test_nothing_moves_for_those_who_want_no_motion(visit_server: OpenVisit, server: Server) -> None:
    visit = visit_server(server, reduced_motion="reduce")
    page = visit.open_reconstruct()
    page.evaluate("document.getElementById('panel-reconstruct').classList.add('waiting')")
    running = "document.getAnimations().filter((animation) => animation.playState === 'running').length"
    assert page.evaluate(running) == 0


def test_forced_colours_show_what_is_selected(visit_server: OpenVisit, server: Server) -> None:
    visit = visit_server(server, forced_colors="active")
    page = visit.open_reconstruct()
    colour = "(element) => getComputedStyle(element).backgroundColor"
    checked = page.locator('input[name="strategy"]:checked + span').evaluate(colour)
    other = page.locator('input[name="strategy"]:not(:checked) + span').first.evaluate(colour)
    assert checked != other
    removed = "(cell) => getComputedStyle(cell).backgroundImage"
    assert "gradient" in page.locator('.cell[aria-selected="true"]').first.evaluate(removed)


def test_tabs_by_arrow_keys(visit: Visit) -> None:
    page = visit.open_reconstruct()
    page.locator("#tab-reconstruct").focus()
    page.keyboard.press("End")
    expect(page.locator("#tab-status")).to_be_focused()
    expect(page.locator("#panel-status")).to_be_visible()
    expect(page.locator("#engine-facts")).to_contain_text("mae_tiny@")
    expect(page.locator("#chart-images .now")).to_have_text("0.0")
    page.keyboard.press("ArrowRight")  # around
    expect(page.locator("#panel-reconstruct")).to_be_visible()
