"""The mask of the tab Reconstruct: drawn by the server, or painted by mouse and by keyboard."""

import re

from playwright.sync_api import Page, expect

from .conftest import Server, Visit
from .support import ask, cell, expect_removed, mask_of, removed


def set_slider(page: Page, name: str, value: int) -> None:
    page.locator(f"#{name}").fill(str(value))


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
