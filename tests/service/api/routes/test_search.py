"""POST /search on the whole app, with an engine and an index whose vectors are known by hand."""

import base64
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.checkpoints.heads import Heads, Whitening
from service.index.table import IndexRow
from service.parameters import EmbedParameters
from tests.service.api.routes.conftest import Start
from tests.support.engines import FakeEngine
from tests.support.indexes import Compass, angle, direction, picture, write_index
from tests.support.metrics import sample

GREYS = (0, 30, 60, 100, 150, 200, 255)
FILES = {f"shades/{grey:03}.png": direction(grey) for grey in GREYS}


@pytest.fixture(scope="module")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of seven images, two of which have thumbnails."""
    path = tmp_path_factory.mktemp("indexes") / "shades.lance"
    write_index(path, FILES, Compass().info, thumbnails={"shades/060.png": b"jpeg 60", "shades/100.png": b"jpeg 100"})
    return path


def nearest(grey: float, k: int) -> list[tuple[str, float]]:
    """The names of the files by the difference of their angles, and the cosines of these."""
    order = sorted(GREYS, key=lambda other: abs(other - grey))[:k]
    return [(f"{other:03}.png", float(np.cos(angle(other) - angle(grey)))) for other in order]


def found(search: dict[str, Any]) -> list[tuple[str, float]]:
    return [(one["name"], one["similarity"]) for one in search["neighbours"]]


def assert_equal(search: dict[str, Any], expected: list[tuple[str, float]]) -> None:
    assert [name for name, _ in found(search)] == [name for name, _ in expected]
    assert [cosine for _, cosine in found(search)] == pytest.approx([cosine for _, cosine in expected], abs=1e-6)


def test_neighbours_by_their_cosine(start: Start, shades: Path) -> None:
    client = start(Compass(), index=shades)
    answer = client.post("/search?k=3", content=picture(70))
    assert answer.status_code == 200, answer.text
    embedded = client.post("/embed", content=picture(70))
    assert answer.json()["space"] == answer.headers["x-mae-space"] == embedded.json()["space"]
    assert answer.json()["model"] == answer.headers["x-mae-model"] == "fake@000000000000"
    assert answer.json()["count"] == 1 and set(answer.json()) == {"model", "space", "count", "searches"}
    [search] = answer.json()["searches"]
    assert_equal(search, nearest(70, 3))
    assert set(search["neighbours"][0]) == {"name", "similarity"}, "folders are not for strangers"
    assert "search;dur=" in answer.headers["server-timing"]


def test_every_body_that_embed_takes(start: Start, shades: Path) -> None:
    client = start(Compass(), index=shades)
    files = [("image", ("a", picture(10))), ("image", ("b", picture(240)))]
    text = [base64.b64encode(picture(grey)).decode() for grey in (10, 240)]
    for body in ({"files": files}, {"json": {"images": text}}):
        answer = client.post("/search", **body).json()  # type: ignore[arg-type]
        assert answer["count"] == 2
        for search, grey in zip(answer["searches"], (10, 240), strict=True):
            assert_equal(search, nearest(grey, 10))  # the index has seven


def test_parameters(start: Start, shades: Path) -> None:
    client = start(Compass(), index=shades)
    close = client.post("/search?min_similarity=0.9", content=picture(60)).json()["searches"][0]
    assert_equal(close, [one for one in nearest(60, 7) if one[1] >= 0.9])
    assert 1 < len(close["neighbours"]) < 7
    pictures = client.post("/search?k=3&thumbnails=true", content=picture(60)).json()["searches"][0]["neighbours"]
    expected = {"060.png": b"jpeg 60", "100.png": b"jpeg 100", "030.png": None}
    for one in pictures:
        content = expected[one["name"]]
        uri = None if content is None else "data:image/jpeg;base64," + base64.b64encode(content).decode()
        assert one["thumbnail"] == uri
    for query, name in (("k=0", "k"), ("k=101", "k"), ("min_similarity=1.1", "min_similarity"), ("pool=cls", "pool")):
        refused = client.post(f"/search?{query}", content=picture(60))
        assert refused.status_code == 422 and refused.json()["error"]["details"] == {"parameter": name}


def test_paths_for_those_who_may_know_them(start: Start, shades: Path) -> None:
    client = start(Compass(), index=shades, index_paths=True)
    [one] = client.post("/search?k=1", content=picture(60)).json()["searches"][0]["neighbours"]
    assert (one["name"], one["path"], one["file"]) == ("060.png", "shades/060.png", "/photos/shades/060.png")


def test_images_that_fail_are_left_out(start: Start, shades: Path) -> None:
    client = start(Compass(), index=shades)
    files = [("image", ("a", picture(10))), ("image", ("b", b"no image")), ("image", ("c", picture(200)))]
    assert client.post("/search", files=files).status_code == 400
    answer = client.post("/search?k=2&on_error=skip", files=files).json()
    assert answer["count"] == 3 and answer["searches"][1] is None
    assert_equal(answer["searches"][0], nearest(10, 2))
    assert_equal(answer["searches"][2], nearest(200, 2))
    [error] = answer["errors"]
    assert (error["image"], error["code"]) == (1, "undecodable_image")


def test_images_are_embedded_as_those_of_the_index_were(start: Start, tmp_path: Path) -> None:
    matrix = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0].astype(np.float32)
    whitening = Whitening(np.array([1, 2, 0, 0, 0, 0, 0, 0], np.float32), matrix)
    heads, parameters = Heads(whitening={"mean": whitening}), EmbedParameters(whiten=True, dimensions=5)
    vectors = {name: whitening.keep_axes(5).apply(vector) for name, vector in FILES.items()}
    write_index(tmp_path / "white.lance", vectors, Compass().info, parameters, heads)
    client = start(Compass(), heads, index=tmp_path / "white.lance")
    answer = client.post("/search?k=7", content=picture(70)).json()
    assert answer["space"].endswith(":mean:whitened:dimensions=5")
    query = whitening.keep_axes(5).apply(direction(70))
    cosines = {
        name.rpartition("/")[2]: float(query @ vector / np.linalg.norm(query) / np.linalg.norm(vector))
        for name, vector in vectors.items()
    }
    expected = sorted(cosines.items(), key=lambda one: -one[1])
    assert_equal(answer["searches"][0], expected)


def test_without_an_index_there_is_no_search(start: Start) -> None:
    client = start(FakeEngine())
    answer = client.post("/search", content=b"no image", headers={"accept": "image/png"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "no_index"
    assert "mae index" in answer.json()["error"]["message"]
    assert client.get("/info").json()["index"] is None
    assert client.post("/search?k=0", content=b"no image").status_code == 422, "the query comes first"


def test_the_index_is_refused_before_accept_and_body(start: Start, shades: Path) -> None:
    client = start(Compass(), index=shades)
    assert client.post("/search", content=b"no image", headers={"accept": "image/png"}).status_code == 406
    assert client.post("/search", content=b"no image").status_code == 400


def test_operators_see_the_index(start: Start, shades: Path) -> None:
    client = start(Compass(), index=shades)
    space = client.post("/embed", content=picture(0)).json()["space"]
    expected = {"name": "shades", "space": space, "rows": 7, "exact": True, "recall": None}
    assert client.get("/info").json()["index"] == expected
    client.post("/search", files=[("image", ("a", picture(1))), ("image", ("b", picture(2)))])
    text = client.get("/metrics").text
    assert sample(text, "mae_index_rows") == 7 and sample(text, "mae_searching_images") == 0
    assert sample(text, "mae_stage_duration_seconds_count", stage="search") == 1
    assert sample(text, "mae_requests_total", endpoint="/search", code="200") == 1
    assert sample(text, "mae_images_total", endpoint="/search") == 2


@pytest.mark.slow
def test_what_is_added_to_the_index_is_found(start: Start, tmp_path: Path) -> None:
    index = write_index(tmp_path / "growing.lance", FILES, Compass().info)
    client = start(Compass(), index=tmp_path / "growing.lance")
    assert client.post("/search?k=1", content=picture(80)).json()["searches"][0]["neighbours"][0]["name"] != "new.png"
    index.add([IndexRow("/photos/new.png", "new.png", direction(80), 1, 1)])

    def is_found() -> bool:
        [one] = client.post("/search?k=1", content=picture(80)).json()["searches"][0]["neighbours"]
        return bool(one["name"] == "new.png")

    end = time.monotonic() + 60
    while not is_found():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert sample(client.get("/metrics").text, "mae_index_rows") == 8
    assert client.get("/info").json()["index"]["rows"] == 8


def test_an_index_that_is_gone_fails_the_search_alone(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_index(tmp_path / "lost.lance", FILES, Compass().info)
    client = start(Compass(), index=tmp_path / "lost.lance")
    for file in (tmp_path / "lost.lance").rglob("*.lance"):
        file.unlink()
    answer = client.post("/search", content=picture(80))
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "search_failed"
    assert str(tmp_path) not in answer.text and str(tmp_path) in caplog.text
    assert client.post("/embed", content=picture(80)).status_code == 200
