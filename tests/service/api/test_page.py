"""The page at / and its files, through the whole app."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from model.engines.base import ServedModel
from service.api.app import create_app
from service.settings import Settings
from tests.support.engines import FakeEngine

FOLDER = Path(__file__).parents[3] / "service" / "page"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
FILES = sorted(
    path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".md"
)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    settings = Settings(api_keys="secret")
    with TestClient(create_app(settings, lambda settings, progress: ServedModel(FakeEngine()))) as client:
        yield client


def test_a_browser_gets_the_page_without_a_key(client: TestClient) -> None:
    response = client.get("/", headers={"accept": BROWSER}, follow_redirects=False)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"] == "default-src 'self'; img-src 'self' blob: data:"
    assert response.text.startswith("<!doctype html>")


@pytest.mark.parametrize("accept", ["*/*", "application/json", "", "text/html;q=0, */*", "text/*"])
def test_others_are_led_to_the_description(client: TestClient, accept: str) -> None:
    response = client.get("/", headers={"accept": accept}, follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (307, "docs")


def test_caches_keep_the_two_apart(client: TestClient) -> None:
    for accept in (BROWSER, "*/*"):
        assert client.get("/", headers={"accept": accept}, follow_redirects=False).headers["vary"] == "Accept"


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_open_and_is_sent_once(client: TestClient, name: str) -> None:
    kinds = {
        "js": "text/javascript",
        "css": "text/css",
        "html": "text/html",
        "jpg": "image/jpeg",
        "svg": "image/svg+xml",
    }
    first = client.get(f"/page/{name}")
    assert first.content == (FOLDER / name).read_bytes()
    assert first.headers["content-type"].split(";")[0] == kinds.get(name.rpartition(".")[2], "image/x-icon")
    assert (first.headers["cache-control"], first.headers["x-content-type-options"]) == ("no-cache", "nosniff")
    for tags in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
        again = client.get(f"/page/{name}", headers={"if-none-match": tags})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert client.get(f"/page/{name}", headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "examples/README.md", "../app.py", "..%2Fapi%2Fapp.py", ""])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/page/{name}").status_code == 404


def test_a_document_without_an_icon_finds_one(client: TestClient) -> None:
    assert Image.open(io.BytesIO(client.get("/favicon.ico").content)).format == "ICO"


def test_every_link_of_the_page_is_relative_and_leads_to_a_file(client: TestClient) -> None:
    """Relative, so that the page works behind a prefix; and nothing comes from elsewhere."""
    html = (FOLDER / "index.html").read_text()
    links = re.findall(r'(?:href|src)="([^"]*)"', html)
    assert "page/main.js" in links
    assert [link for link in links if not re.match(r"page/|docs$|#", link)] == []
    assert [link for link in links if link.startswith("page/") and link.removeprefix("page/") not in FILES] == []


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_every_import_of_a_module_leads_to_a_file(name: str) -> None:
    text = (FOLDER / name).read_text()
    for target in re.findall(r'(?:from |import\()"([^"]*)"', text):
        assert target.startswith(".") and ((FOLDER / name).parent / target).resolve().is_file(), target


def test_nothing_is_stored_and_no_module_is_long() -> None:
    for path in FOLDER.rglob("*.js"):
        assert len(path.read_text().splitlines()) <= 300, path
        assert not re.search(
            r"localStorage|sessionStorage|document\.cookie|indexedDB|https?://(?!www\.w3\.org)", path.read_text()
        )


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".jpg")])
def test_examples_are_small_and_named_with_their_source(name: str) -> None:
    assert (FOLDER / name).stat().st_size <= 60_000
    assert Path(name).stem in (FOLDER / "index.html").read_text()
    assert Path(name).name in (FOLDER / "examples" / "README.md").read_text()
