"""`on_error=skip`: images that fail are left out, and the answer says which and why."""

import base64
import io
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from model.checkpoints.heads import Head, Heads
from model.checkpoints.native import HeadConfig
from model.engines.base import ServedModel
from service.api.app import create_app
from service.errors import ServiceError
from service.settings import Settings
from tests.support.engines import FakeEngine
from tests.support.indexes import write_index

POISON = 201
ROUTES = {
    "/embed": "embeddings",
    "/classify": "classifications",
    "/reconstruct": "reconstructions",
    "/anomaly": "anomalies",
    "/search": "searches",
}
DRAWN = ("/reconstruct", "/anomaly")
"""The routes that draw masks."""


def grey(value: int, size: int = 32) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (value, value, value)).save(out, "PNG")
    return out.getvalue()


BAD = {
    "undecodable_image": b"words",
    "unsupported_media_type": b"%PDF-1.7",
    "too_many_pixels": grey(1, 200),
    "inference_failed": grey(POISON),
    "no_images": b"",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    engine = FakeEngine(not_a_number=POISON)
    index = tmp_path_factory.mktemp("indexes") / "one.lance"
    write_index(index, {"a.png": np.ones(8, np.float32)}, engine.info)
    head = HeadConfig(pool="mean", classes=("night", "day"))
    engine.info = engine.info.model_copy(update={"head": head})
    heads = Heads(Head(head, np.zeros((2, 8), np.float32), np.zeros(2, np.float32)))
    app = create_app(Settings(max_pixels=10_000, index=index), lambda settings, progress: ServedModel(engine, heads))
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        yield client


def post(client: TestClient, route: str, *images: bytes, query: str = "on_error=skip", **options: Any) -> Any:
    return client.post(f"{route}?{query}", files=[("i", ("f", image)) for image in images], **options)


@pytest.mark.parametrize("route", ROUTES)
def test_images_that_fail_are_null_and_named(client: TestClient, route: str) -> None:
    images = [grey(1), *BAD.values(), grey(2)]
    response = post(client, route, *images)
    assert response.status_code == 200, response.text
    content = response.json()
    assert content["count"] == len(images)
    answers = content[ROUTES[route]]
    assert [answer is None for answer in answers] == [False, *[True] * len(BAD), False]
    alone = post(client, route, images[-1], query="seed=1" if route in DRAWN else "", headers=JSON).json()
    if route not in DRAWN:  # there the mask is another one
        assert answers[-1] == alone[ROUTES[route]][0]
    assert [error["image"] for error in content["errors"]] == list(range(1, 1 + len(BAD)))
    assert [error["code"] for error in content["errors"]] == list(BAD)
    assert all(set(error) == {"image", "code", "message"} for error in content["errors"])
    if route == "/reconstruct":
        losses = response.headers["x-mae-loss"].split(",")
        assert len(losses) == len(images) and losses[1:-1] == [""] * len(BAD) and losses[0] and losses[-1]


JSON = {"accept": "application/json"}


@pytest.mark.parametrize("query", ["pool=tokens", "encoding=base64", "pool=tokens&keep=0.5&seed=3", "normalize=true"])
def test_vectors_in_every_form_have_gaps(client: TestClient, query: str) -> None:
    content = post(client, "/embed", b"words", grey(7), query=f"{query}&on_error=skip").json()
    alone = post(client, "/embed", grey(7), query=query).json()
    assert content["embeddings"] == [None, *alone["embeddings"]]
    assert {key: content[key] for key in alone if key not in ("embeddings", "count")} == {
        key: alone[key] for key in alone if key not in ("embeddings", "count")
    }


@pytest.mark.parametrize("route", ROUTES)
def test_without_a_failure_the_list_of_errors_is_empty(client: TestClient, route: str) -> None:
    content = post(client, route, grey(1), grey(2)).json()
    assert content["errors"] == [] and None not in content[ROUTES[route]]
    without = post(client, route, grey(1), grey(2), query="on_error=fail", headers=JSON).json()
    assert "errors" not in without


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("code", "image"), BAD.items())
def test_where_no_image_is_good_the_error_of_the_first_is_answered(
    client: TestClient, route: str, code: str, image: bytes
) -> None:
    [kind] = [kind for kind in ServiceError.__subclasses__() if kind.code == code]
    for images in ([image], [image, *BAD.values()]):
        response = post(client, route, *images)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["details"]["image"]) == (kind.status, code, 0)
    assert client.get("/metrics").text.count("mae_admitted_images 0.0")


@pytest.mark.parametrize("route", ROUTES)
def test_by_default_one_image_fails_the_request(client: TestClient, route: str) -> None:
    for query in ("", "on_error=fail"):
        response = post(client, route, grey(1), b"words", query=query)
        assert (response.status_code, response.json()["error"]["details"]) == (400, {"image": 1})


@pytest.mark.parametrize(
    ("route", "accept"),
    [
        ("/embed", "application/x-npy"),
        ("/reconstruct", "image/png"),
        ("/reconstruct", "application/zip"),
        ("/anomaly", "image/png"),
    ],
)
def test_only_json_has_gaps(client: TestClient, route: str, accept: str) -> None:
    response = post(client, route, grey(1), headers={"accept": accept})
    assert (response.status_code, response.json()["error"]["code"]) == (406, "not_acceptable")
    assert post(client, route, grey(1), headers={"accept": f"{accept}, application/json;q=0.1"}).status_code == 200


@pytest.mark.parametrize("route", ROUTES)
def test_json_bodies_have_gaps_too(client: TestClient, route: str) -> None:
    texts = ["no base64!", base64.b64encode(grey(1)).decode(), "https://example.org/cat.jpg", None]
    content = client.post(f"{route}?on_error=skip", json={"images": texts}).json()
    assert [(error["image"], error["code"]) for error in content["errors"]] == [
        (index, "malformed_body") for index in (0, 2, 3)
    ]
    assert [answer is None for answer in content[ROUTES[route]]] == [True, False, True, True]


def test_a_mask_that_fails_is_no_image_that_fails(client: TestClient) -> None:
    files = [("image", ("f", grey(1))), ("mask", ("m", b"words"))]
    response = client.post("/reconstruct?on_error=skip", files=files)
    assert (response.status_code, response.json()["error"]["message"][:8]) == (400, "the mask")


def test_only_answered_images_are_counted(client: TestClient) -> None:
    def counted() -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("mae_images_total{"))

    before = counted()
    post(client, "/embed", grey(1), b"words", grey(2))
    assert counted() - before == 2
