"""The tab Reconstruct: each control, by mouse and by keyboard."""

import base64
import json
import re
import shlex
import subprocess
import urllib.request
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from .conftest import OpenVisit, Server, Visit
from .support import BROKEN, drop, example, file, paste, removed


def ask(server: Server, query: str, name: str = "chelsea") -> dict[str, Any]:
    """What the server itself answers to a request."""
    headers = {"accept": "application/json", "content-type": "image/jpeg"}
    request = urllib.request.Request(f"{server.url}/reconstruct?{query}", example(name), headers)
    with urllib.request.urlopen(request) as response:
        return dict(json.load(response))


def mask_of(answer: dict[str, Any]) -> list[int]:
    return [index for index, flag in enumerate(answer["mask"]) if flag]


def expect_removed(page: Page, expected: list[int]) -> None:
    """Waits until the grid shows a mask."""
    for _ in range(100):
        if removed(page) == expected:
            return
        page.wait_for_timeout(50)
    assert removed(page) == expected


def cell(page: Page, index: int) -> Any:
    return page.locator(f'#grid [data-index="{index}"]')


def set_slider(page: Page, name: str, value: int) -> None:
    page.locator(f"#{name}").fill(str(value))


def test_the_first_picture_is_what_the_server_answers(visit: Visit, server: Server) -> None:
    page = visit.open_reconstruct()
    answer = ask(server, "mask_ratio=0.75&strategy=random&seed=7")
    expect_removed(page, mask_of(answer))
    expect(page.locator("#ratio-count")).to_have_text("147 of 196 removed")
    expect(page.locator("#loss")).to_have_text(f"{answer['reconstructions'][0]['loss']:.3f}")
    expect(page.locator("#model")).to_have_text("mae_tiny")
    names = [item.split()[0] for item in page.locator("#stages li").all_inner_texts()]
    assert {"decode", "infer", "render", "other"} <= set(names)


def test_slider_strategy_and_seed_ask_for_the_same_mask_as_the_route(visit: Visit, server: Server) -> None:
    page = visit.open_reconstruct()
    set_slider(page, "ratio", 40)
    expect(page.locator("#ratio-count")).to_have_text("79 of 196 removed")
    expect_removed(page, mask_of(ask(server, "mask_ratio=0.4&strategy=random&seed=7")))
    page.get_by_label("block").check()
    expect_removed(page, mask_of(ask(server, "mask_ratio=0.4&strategy=block&seed=7")))
    page.locator("#seed").fill("18446744073709551615")
    expect_removed(page, mask_of(ask(server, "mask_ratio=0.4&strategy=block&seed=18446744073709551615")))
    page.locator("#seed").fill("18446744073709551616")
    expect(page.locator("#seed-error")).to_be_visible()
    expect(page.locator("#seed")).to_have_attribute("aria-invalid", "true")


def test_dice_draw_another_seed_and_the_lock_keeps_it(visit: Visit) -> None:
    page = visit.open_reconstruct()
    seed = page.locator("#seed")
    page.locator("#dice").click()
    expect(seed).not_to_have_value("7")
    before = seed.input_value()
    set_slider(page, "ratio", 60)
    expect(seed).to_have_value(before)  # locked
    page.locator("#seed-lock").click()
    set_slider(page, "ratio", 61)
    expect(seed).not_to_have_value(before)


def test_the_ends_of_the_slider_are_masks_that_the_server_takes(visit: Visit) -> None:
    page = visit.open_reconstruct()
    for key, count in (("Home", 2), ("End", 195)):
        page.locator("#ratio").press(key)
        expect(page.locator("#ratio-count")).to_have_text(f"{count} of 196 removed")
        for _ in range(100):
            if len(removed(page)) == count:
                break
            page.wait_for_timeout(50)
        assert len(removed(page)) == count
    expect(page.locator("#alerts .notice")).to_have_count(0)


def test_a_mask_painted_by_mouse(visit: Visit, server: Server) -> None:
    page = visit.open_reconstruct()
    page.locator("#clear").click()
    expect(page.locator("#mask-hint")).to_have_text("Remove at least one patch.")
    box = page.locator("#grid").bounding_box()
    assert box
    side = box["width"] / 14

    def centre(index: int) -> tuple[float, float]:
        return box["x"] + (index % 14 + 0.5) * side, box["y"] + (index // 14 + 0.5) * side

    page.mouse.move(*centre(16))
    page.mouse.down()
    page.mouse.move(*centre(20), steps=2)  # jumps over patches: the line between them counts
    page.mouse.up()
    assert removed(page) == [16, 17, 18, 19, 20]
    page.mouse.click(*centre(18))  # brings back
    assert removed(page) == [16, 17, 19, 20]
    page.locator("#brush-size").select_option("3")
    page.mouse.click(*centre(0))  # the brush is cut at the corner
    assert removed(page) == [0, 1, 14, 15, 16, 17, 19, 20]
    page.get_by_label("Rectangle").check()
    page.mouse.move(*centre(70))
    page.mouse.down()
    page.mouse.move(*centre(86), steps=4)
    page.mouse.up()
    page.mouse.click(*centre(190))  # two clicks, for those who cannot drag
    page.mouse.click(*centre(176))
    mask = [0, 1, 14, 15, 16, 17, 19, 20, 70, 71, 72, 84, 85, 86, 176, 190]
    assert removed(page) == mask
    loss = ask(server, f"patches={','.join(map(str, mask))}")["reconstructions"][0]["loss"]
    expect(page.locator("#loss")).to_have_text(f"{loss:.3f}")
    expect(page.locator("#by-hand")).to_be_visible()
    expect(page.locator("#ratio-count")).to_have_text("16 of 196 removed")


def test_a_mask_painted_by_keyboard_alone(visit: Visit, server: Server) -> None:
    page = visit.open_reconstruct()
    page.keyboard.press("Tab")  # the link that skips to the content
    for _ in range(60):
        if page.evaluate("document.activeElement.id") == "clear":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    for _ in range(20):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.getAttribute('role')") == "gridcell":
            break
    page.keyboard.press("Space")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown", "Space"):
        page.keyboard.press(key)
    page.keyboard.press("Control+End")
    page.keyboard.press("Enter")
    mask = [0, 29, 30, 43, 44, 195]
    assert removed(page) == mask
    loss = ask(server, f"patches={','.join(map(str, mask))}")["reconstructions"][0]["loss"]
    expect(page.locator("#loss")).to_have_text(f"{loss:.3f}")
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == "row 14, column 14"  # an answer does not move the focus
    expect(page.locator("#announcements")).to_have_text(re.compile("6 of 196 patches removed, loss 0"))


def test_undo_redo_invert(visit: Visit) -> None:
    page = visit.open_reconstruct()
    before = removed(page)
    expect(page.locator("#undo")).to_be_enabled()  # the fragment was a choice, too
    page.locator("#invert").click()
    rest = [index for index in range(196) if index not in before]
    assert removed(page) == rest
    page.locator("#undo").click()
    expect_removed(page, before)
    page.locator("#redo").click()
    assert removed(page) == rest
    cell(page, 3).focus()
    page.keyboard.press("Control+z")
    expect_removed(page, before)
    page.keyboard.press("Control+Shift+z")
    assert removed(page) == rest


def test_one_pull_at_the_slider_is_one_step(visit: Visit) -> None:
    page = visit.open_reconstruct()
    box = page.locator("#ratio").bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] / 2, steps=12)
    page.mouse.up()
    expect(page.locator("#ratio-percent")).not_to_have_text("75 %")
    page.locator("#undo").click()
    expect(page.locator("#ratio-percent")).to_have_text("75 %")


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


def test_without_a_removed_patch_there_is_the_image_and_no_prediction(visit: Visit) -> None:
    page = visit.open_reconstruct()
    pixels = """() => {
      const canvas = document.getElementById("editor-picture");
      return [...canvas.getContext("2d").getImageData(112, 112, 1, 1).data];
    }"""
    chelsea = page.evaluate(pixels)
    page.locator("#clear").click()
    expect(page.locator("#loss")).to_have_text(re.compile(r"^\D$"))
    expect(page.locator("#stage")).to_contain_text("No picture")
    expect(page.locator("#copy-curl")).to_be_disabled()
    assert page.evaluate(pixels) == chelsea
    page.locator('[data-image="coffee"]').click()
    page.wait_for_function(f"(before) => !({pixels})().every((value, at) => value === before[at])", arg=[0, 0, 0, 0])
    page.wait_for_timeout(500)
    assert page.evaluate(pixels) not in (chelsea, [0, 0, 0, 0])
    expect(page.locator("#loss")).to_have_text(re.compile(r"^\D$"))
    cell(page, 5).click()
    expect(page.locator("#after")).to_have_attribute("aria-label", re.compile("coffee.jpg"))
    expect(page.locator("#copy-curl")).to_be_enabled()


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
