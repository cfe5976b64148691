"""One server with workers in a place of its own: a prefix, a name, another origin, Vertex's routes, and a cache."""

import base64
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from tests.live.conftest import LiveServer, Start
from tests.support.clients import grey

PREDICT = "/v1/endpoints/1/deployedModels/2:predict"
WORKERS = 2


@pytest.fixture(scope="module")
def placed(start_server: Start) -> LiveServer:
    return start_server(
        fake={"AIP_PREDICT_ROUTE": PREDICT, "AIP_HEALTH_ROUTE": "/health", "AIP_HTTP_PORT": "1"},
        http_workers=WORKERS,
        root_path="/mae",
        served_name="shelf",
        cors_origins="https://app.example",
        cache_mb=1,
        api_keys="key",
    )


@pytest.fixture
def client(placed: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=placed.url + "/mae", timeout=60, headers={"x-api-key": "key"}) as client:
        yield client


def test_workers_serve_where_the_settings_say(client: httpx.Client) -> None:
    assert client.get("/health").json()["state"] == client.get("/ping").json()["state"] == "ready"
    answer = client.post("/embed", content=grey(7), headers={"origin": "https://app.example"}).json()
    assert answer["model"].startswith("shelf@")
    predictions = client.post(PREDICT, json={"instances": [{"b64": base64.b64encode(grey(7)).decode()}]})
    assert predictions.json() == {"predictions": answer["embeddings"]}
    asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
    preflight = httpx.options(f"{client.base_url}embed", headers=asked)
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "static-offline-docs/" in client.get("/docs").text


def test_each_worker_keeps_its_part_of_the_results(placed: LiveServer, client: httpx.Client) -> None:
    before = [placed.metric(f"mae_cache_{name}_total") for name in ("hits", "misses")]
    vectors = []
    for _ in range(20):  # a connection for each, so that both workers get some
        with httpx.Client(base_url=client.base_url, timeout=60, headers=client.headers) as fresh:
            files = [("image", grey(value)) for value in (90, 91, 92)]
            vectors.append(fresh.post("/embed", files=files).json()["embeddings"])
    assert all(vector == vectors[0] for vector in vectors)
    assert [vector[0] for vector in vectors[0]] == [90, 91, 92]
    after = [placed.metric(f"mae_cache_{name}_total") for name in ("hits", "misses")]
    hits, misses = np.subtract(after, before)
    assert hits + misses == 60 and misses <= 3 * WORKERS
    assert 0 < placed.metric("mae_cache_bytes") < 1e6
    with httpx.Client(base_url=client.base_url, timeout=60, headers=client.headers) as one:
        for value in (90, 93):  # on one connection: known and new images in one request
            files = [("image", grey(value)), ("image", grey(94)), ("image", grey(90))]
            assert [vector[0] for vector in one.post("/embed", files=files).json()["embeddings"]] == [value, 94, 90]
