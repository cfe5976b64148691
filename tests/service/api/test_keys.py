"""Limits per key, and paths that need a key by choice, through the whole app."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.paths import KEYABLE, PROBES, is_below
from tests.support.app import serve_app
from tests.support.clients import grey
from tests.support.engines import FakeEngine

IMAGE = grey(7)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


HEALTH = {"health_route": "/page/health"}


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


def embed(client: TestClient, name: str, images: int = 1) -> Any:
    return client.post("/embed", headers=key(name), files=[("image", IMAGE)] * images)


def test_a_key_has_no_more_requests_in_flight_than_it_may() -> None:
    gate = threading.Event()
    engine = FakeEngine(before=lambda images: gate.wait(60) and None)
    with serve_app(engine, api_keys=("one", "two"), key_max_requests=2) as client, ThreadPoolExecutor() as pool:
        try:
            inflight = client.app.state.service.budgets.requests  # type: ignore[attr-defined]
            waiting = [pool.submit(embed, client, "one") for _ in range(2)]
            wait_until(lambda: inflight.used == 2)
            refused = embed(client, "one")
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "key_busy")
            assert refused.headers["retry-after"] == "1"
            assert client.get("/info", headers=key("one")).status_code == 200  # no inference
            waiting.append(pool.submit(embed, client, "two"))
            wait_until(lambda: inflight.used == 3)
        finally:
            gate.set()
        assert [one.result().status_code for one in waiting] == [200] * 3
        for _ in range(3):  # whatever the end of a request, its place is free again
            assert client.post("/embed?pool=none", headers=key("one"), content=IMAGE).status_code == 422
            assert client.post("/embed", headers=key("one"), content=b"words").status_code == 400
            assert client.post("/embed", headers=key("wrong"), content=IMAGE).status_code == 401
        assert embed(client, "one").status_code == 200


def test_a_key_has_no_more_images_per_second_than_it_may() -> None:
    settings = {"api_keys": ("one", "two"), "key_images_per_s": 0.001, "max_images": 4}
    with serve_app(FakeEngine(), **settings) as client:
        assert embed(client, "one", 3).status_code == 200
        refused = embed(client, "one", 2)  # one is left
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "key_rate_exceeded")
        assert 900 < int(refused.headers["retry-after"]) <= 1000
        assert embed(client, "one").status_code == 200
        assert embed(client, "one").status_code == 429
        assert client.post("/v1/embeddings", headers=key("one"), json={}).json()["error"]["code"] == "key_rate_exceeded"
        assert client.post("/embed?pool=none", headers=key("one")).status_code == 429  # before the query
        assert embed(client, "two", 4).status_code == 200


@pytest.fixture(scope="module")
def keyed() -> Iterator[TestClient]:
    """Everything that can need a key does."""
    with serve_app(
        FakeEngine(), api_keys=("one",), keyed_paths=",".join(KEYABLE), root_path="/mae", **HEALTH
    ) as client:
        yield client


PATHS = [
    "/",
    "/docs",
    "/docs/",
    "//docs",
    "/openapi.json",
    "/static-offline-docs/swagger-ui.css",
    "/metrics",
    "/mae/metrics",
    "/page/main.js",
    "/v1/models",
    "/models/fake@000000000000",
    "/v2",
    "/v2/models/embed",
    "/v2/models/embed/stats",
    "/favicon.ico",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_keyed_path_needs_a_key(keyed: TestClient, path: str) -> None:
    for method in ("GET", "HEAD"):
        refused = keyed.request(method, path, follow_redirects=False)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    assert keyed.get(path, headers=key("one"), follow_redirects=False).status_code in (200, 307)


@pytest.mark.parametrize("path", [*sorted(PROBES), *HEALTH.values()])
def test_probes_never_need_a_key(keyed: TestClient, path: str) -> None:
    assert keyed.get(path).status_code == 200


def test_all_that_is_open_can_be_keyed(keyed: TestClient) -> None:
    """So that a new route cannot be forgotten."""
    routes = {route.path for route in keyed.app.routes if hasattr(route, "path")}  # type: ignore[attr-defined]
    assert len(routes) > 30
    for path in routes:
        if path not in (*PROBES, *HEALTH.values()) and not is_below(path, KEYABLE):
            refused = {keyed.request(method, path).status_code for method in ("GET", "POST")}
            assert 401 in refused, path


def test_without_keyed_paths_they_are_open() -> None:
    with serve_app(FakeEngine(), api_keys=("one",)) as client:
        assert {client.get(path).status_code for path in ("/metrics", "/docs", "/openapi.json", "/v2")} == {200}
