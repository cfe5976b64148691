"""What several tests of the page need."""

import base64
import json
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from .conftest import Server

EXAMPLES = Path(__file__).parents[2] / "service" / "page" / "examples"
BROKEN = b"\xff\xd8\xff\xe0 this is no photograph"

DROP = """(files) => {
  const transfer = new DataTransfer();
  for (const { name, type, base64 } of files) {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type }));
  }
  document.body.dispatchEvent(new DragEvent("dragenter", { bubbles: true, dataTransfer: transfer }));
  document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer }));
}"""
PASTE = """({ name, type, base64 }) => {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  document.body.dispatchEvent(new ClipboardEvent("paste", { bubbles: true, clipboardData: transfer }));
}"""


def file(name: str, content: bytes, media_type: str = "image/jpeg") -> dict[str, str]:
    """A file as `drop` and `paste` take it."""
    return {"name": name, "type": media_type, "base64": base64.b64encode(content).decode()}


def example(name: str) -> bytes:
    """The bytes of an example of the page."""
    return (EXAMPLES / f"{name}.jpg").read_bytes()


def drop(page: Page, files: Iterable[dict[str, str]]) -> None:
    """Drops files on the page."""
    page.evaluate(DROP, list(files))


def paste(page: Page, pasted: dict[str, str]) -> None:
    """Pastes a file."""
    page.evaluate(PASTE, pasted)


def removed(page: Page) -> list[int]:
    """The indices of the patches that the grid shows as removed."""
    cells = page.locator('#grid [role="gridcell"]')
    flags: list[Any] = cells.evaluate_all("cells => cells.map(cell => cell.getAttribute('aria-selected') === 'true')")
    return [index for index, flag in enumerate(flags) if flag]


def ask(server: Server, query: str, name: str = "chelsea") -> dict[str, Any]:
    """What the server itself answers to POST /reconstruct with an example."""
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
