"""The tab Reconstruct: its views, images and address, by mouse and by keyboard."""

import base64
import re
import shlex
import subprocess
from typing import Any

import pytest
from playwright.sync_api import expect

from .conftest import OpenVisit, Server, Visit
from .support import BROKEN, ask, cell, drop, example, expect_removed, file, mask_of, paste, removed


def test_the_first_picture_is_what_the_server_answers(visit: Visit, server: Server) -> None:
    page = visit.open_reconstruct()
    answer = ask(server, "mask_ratio=0.75&strategy=random&seed=7")
    expect_removed(page, mask_of(answer))
    expect(page.locator("#ratio-count")).to_have_text("147 of 196 removed")
    expect(page.locator("#loss")).to_have_text(f"{answer['reconstructions'][0]['loss']:.3f}")
    expect(page.locator("#model")).to_have_text("mae_tiny")
    names = [item.split()[0] for item in page.locator("#stages li").all_inner_texts()]
    assert {"decode", "infer", "render", "other"} <= set(names)


def test_views_are_those_of_the_server(visit: Visit, server: Server, tmp_path: Any) -> None:
    """Pixel by pixel, as downloads: the browser draws four of the views itself."""
    page = visit.open_reconstruct()
    decode = """async (base64) => {
      const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
      const bitmap = await createImageBitmap(new Blob([bytes]));
      const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
      const context = canvas.getContext("2d");
      context.drawImage(bitmap, 0, 0);
      return [...context.getImageData(0, 0, bitmap.width, bitmap.height).data];
    }"""
    for view in ("masked", "reconstruction", "composite", "error"):
        page.locator(f'[data-view="{view}"]').click()
        with page.expect_download() as download:
            page.locator("#download").click()
        assert download.value.suggested_filename == f"chelsea-{view}.png"
        path = tmp_path / view
        download.value.save_as(path)
        shown = page.evaluate(decode, base64.b64encode(path.read_bytes()).decode())
        png = ask(server, f"mask_ratio=0.75&strategy=random&seed=7&view={view}")["reconstructions"][0]["png"]
        expected = page.evaluate(decode, png)
        assert len(shown) == len(expected)
        assert max(abs(one - other) for one, other in zip(shown, expected, strict=True)) <= 1, view
    expect(page.locator("#legend")).to_be_visible()
    expect(page.locator("#after")).to_have_attribute("aria-label", re.compile("squared error .* 75 % removed, loss 0"))


def test_the_wipe(visit: Visit) -> None:
    page = visit.open_reconstruct()
    slider = page.locator("#wipe")
    slider.fill("0")
    expect(page.locator("#after")).to_have_css("clip-path", "inset(0px 0px 0px 0%)")
    expect(slider).to_have_attribute("aria-valuetext", "0 % original, 100 % result")
    box = page.locator("#stage").bounding_box()
    assert box
    page.mouse.click(box["x"] + box["width"] * 0.8, box["y"] + 50)
    expect(slider).to_have_value("80")


def test_curl_sends_the_request_that_the_page_shows(visit: Visit, server: Server, tmp_path: Any) -> None:
    page = visit.open_reconstruct("image=chelsea&ratio=0.5&strategy=grid&seed=3&view=masked")
    command = shlex.split(page.locator("#curl").text_content() or "")
    (tmp_path / "chelsea.jpg").write_bytes(example("chelsea"))
    subprocess.run([*command, "-s", "-S", "--fail"], cwd=tmp_path, check=True)
    png = ask(server, "mask_ratio=0.5&strategy=grid&seed=3&view=masked")["reconstructions"][0]["png"]
    assert (tmp_path / "chelsea-masked.png").read_bytes() == base64.b64decode(png)
    page.locator("#clear").click()
    cell(page, 5).click()
    expect(page.locator("#curl")).to_contain_text("reconstruct?patches=5&view=masked'")
    name = 'we, 3; "two".jpg'
    (tmp_path / name).write_bytes(example("chelsea"))
    drop(page, [file(name, example("chelsea"))])
    expect(page.locator("#curl")).to_contain_text("two")
    command = shlex.split(page.locator("#curl").text_content() or "")
    subprocess.run([*command, "-s", "-S", "--fail"], cwd=tmp_path, check=True)
    assert (tmp_path / 'we, 3; "two"-masked.png').exists()


def test_the_state_is_in_the_address(visit: Visit, visit_server: OpenVisit, server: Server) -> None:
    page = visit.open_reconstruct("image=coffee&ratio=0.6&strategy=grid&seed=11&view=error")
    expect(page.locator('[data-image="coffee"]')).to_have_attribute("aria-pressed", "true")
    expect_removed(page, mask_of(ask(server, "mask_ratio=0.6&strategy=grid&seed=11", "coffee")))
    expect(page.locator("#stage-title")).to_have_text("Error")
    cell(page, 0).click()
    painted = removed(page)
    expect(page).to_have_url(re.compile("#reconstruct.image=coffee&mask="))
    address = page.evaluate("location.hash")
    other = visit_server(server).open_reconstruct(address.partition("?")[2])
    expect_removed(other, painted)
    other.evaluate("location.hash = '#reconstruct?image=rocket&ratio=0.5&seed=2&strategy=random'")
    expect(other.locator("#ratio-percent")).to_have_text("50 %")
    expect(other.locator('[data-image="rocket"]')).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("fragment", ["mask=AAAA", "ratio=7&seed=-1&strategy=spiral&view=cubist&image=none", "ratio=0"])
def test_an_address_of_nonsense_leads_to_the_first_choice(visit: Visit, fragment: str) -> None:
    page = visit.open_reconstruct(fragment)
    expect(page.locator("#ratio-count")).to_have_text("147 of 196 removed")
    expect(page.locator("#stage-title")).to_have_text("Composite")


def test_images_are_picked_dropped_and_pasted(visit: Visit) -> None:
    page = visit.open_reconstruct()
    page.locator("#file-input").set_input_files(
        {"name": "picked.jpg", "mimeType": "image/jpeg", "buffer": example("rocket")}
    )
    expect(page.locator("#image-name")).to_have_text("picked.jpg")
    expect(page.locator("#after")).to_have_attribute("aria-label", re.compile("picked.jpg"))
    drop(page, [file("dropped.jpg", example("coffee")), file("notes.txt", b"text", "text/plain")])
    expect(page.locator("#after")).to_have_attribute("aria-label", re.compile("dropped.jpg"))
    expect(page.locator("#alerts")).to_contain_text("notes.txt")
    paste(page, file("image.png", example("astronaut"), "image/png"))
    expect(page.locator("#after")).to_have_attribute("aria-label", re.compile("image.png"))
    page.get_by_role("button", name="Remove image.png").click()
    expect(page.locator("#image-name")).to_have_text("dropped.jpg")


def test_a_broken_image_is_named(visit: Visit) -> None:
    page = visit.open_reconstruct()
    drop(page, [file("holiday.jpg", BROKEN)])
    expect(page.locator("#alerts")).to_contain_text("holiday.jpg: it ")
    expect(page.locator("#stage")).to_contain_text("No picture")
    page.locator('[data-image="chelsea"]').click()
    expect(page.locator("#alerts .notice")).to_have_count(0)
    expect(page.locator("#loss")).to_have_text(re.compile(r"\d"))
    visit.expect_errors("status of 400")


def test_names_below_the_images_keep_their_ends(visit: Visit) -> None:
    page = visit.open_reconstruct()
    drop(page, [file(f"photograph-of-a-holiday-{number}.jpg", example("coffee")) for number in (1001, 1002)])
    for number in (1001, 1002):
        image = page.get_by_role("button", name=f"photograph-of-a-holiday-{number}.jpg", exact=True)
        end = image.locator(".name > :last-child")
        expect(end).to_have_text(str(number))
        assert end.bounding_box()["width"] > 20  # type: ignore[index]
        right = "(element) => element.getBoundingClientRect().right"
        assert end.evaluate(right) <= image.evaluate(right)


def test_each_view_says_what_it_shows(visit: Visit) -> None:
    page = visit.open_reconstruct()
    expect(page.get_by_text("The model sees only the patches that are left")).to_be_in_viewport()
    meanings = set()
    for view in ("original", "masked", "reconstruction", "composite", "error"):
        page.locator(f'[data-view="{view}"]').click()
        meanings.add(page.locator("#stage-meaning").text_content())
    assert len(meanings) == 5 and "" not in meanings


def test_a_link_is_that_of_the_moment(visit_server: OpenVisit, server: Server) -> None:
    visit = visit_server(server, permissions=["clipboard-read", "clipboard-write"])
    page = visit.open_reconstruct("image=coffee")
    for value in range(30, 60):  # faster than a browser lets its address change
        page.locator("#ratio").fill(str(value))
    page.locator("#copy-link").click()
    expect(page.locator("#copy-link")).to_have_class(re.compile("done"))
    link = page.evaluate("navigator.clipboard.readText()")
    assert link == f"{server.url}/#reconstruct?image=coffee&ratio=0.59&strategy=random&seed=7&view=composite"
    page.locator("#copy-curl").click()
    expect(page.locator("#copy-curl")).to_have_class(re.compile("done"))
    assert page.evaluate("navigator.clipboard.readText()") == page.locator("#curl").text_content()


def test_the_link_that_skips_leaves_the_tab(visit: Visit) -> None:
    page = visit.open("#status")
    expect(page.locator("#panel-status")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    expect(page.locator("#panel-status")).to_be_visible()


def test_surprise(visit: Visit) -> None:
    page = visit.open_reconstruct()
    before = page.evaluate("location.hash")
    page.locator("#surprise").click()
    expect(page.locator('[data-image="chelsea"]')).to_have_attribute("aria-pressed", "false")
    expect(page).not_to_have_url(re.compile(re.escape(before)))
