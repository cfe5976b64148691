"""The routes of SageMaker and Vertex AI: the answers of /embed, in the shapes of these platforms."""

import asyncio
import base64
import io
import signal
import time
from collections.abc import Iterator

import numpy as np
import orjson
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from model.engines.base import ServedModel
from service.api.app import create_app
from service.settings import Settings
from tests.support.engines import FakeEngine

HEALTH = "/v1/endpoints/12/deployedModels/34"
PREDICT = HEALTH + ":predict"


def picture(value: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (value, value, value)).save(out, "PNG")
    return out.getvalue()


def instance(value: int) -> dict[str, str]:
    return {"b64": base64.b64encode(picture(value)).decode()}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    settings = Settings(health_route=HEALTH, predict_route=PREDICT, max_images=3, max_body_mb=1)
    with TestClient(create_app(settings, lambda settings, progress: ServedModel(FakeEngine()))) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        yield client


@pytest.mark.parametrize("path", ["/ping", HEALTH])
def test_health_is_readiness(client: TestClient, path: str) -> None:
    assert (client.get(path).status_code, client.get(path).json()["state"]) == (200, "ready")
    service = client.app.state.service  # type: ignore[attr-defined]
    service._state.change("draining")
    try:
        assert client.get(path).status_code == client.get("/readyz").status_code == 503
        assert client.post("/invocations", content=picture(1)).status_code == 503
        assert client.post(PREDICT, json={"instances": [instance(1)]}).json()["error"]["code"] == "draining"
    finally:
        service._state.change("ready", "")


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/x-image"},
        {"content-type": "image/png", "accept": "application/json"},
        {"content-type": "application/octet-stream", "accept": "application/x-npy"},
    ],
)
def test_an_invocation_is_answered_as_embed_does(client: TestClient, headers: dict[str, str]) -> None:
    for query in ("", "?pool=cls&normalize=true"):
        expected = client.post(f"/embed{query}", content=picture(7), headers=headers)
        answer = client.post(f"/invocations{query}", content=picture(7), headers=headers)
        assert (answer.status_code, answer.content) == (200, expected.content)
        assert answer.headers["x-mae-space"] == expected.headers["x-mae-space"]
        attributes = {"X-Amzn-SageMaker-Custom-Attributes": query.removeprefix("?")}
        assert client.post("/invocations", content=picture(7), headers={**headers, **attributes}).content == (
            expected.content
        )


def test_invocations_take_forms_and_json_too(client: TestClient) -> None:
    files = [("image", picture(5)), ("image", picture(6))]
    assert client.post("/invocations", files=files).json()["count"] == 2
    assert client.post("/invocations", json={"images": [instance(5)["b64"]]}).json()["count"] == 1


@pytest.mark.parametrize(
    ("attributes", "status", "parameter"),
    [
        ("c000b4f9-df62-4c85-a0bf-7c525f9104a4", 200, None),
        ("pool=max", 422, "pool"),
        ("trace=1", 422, "trace"),
        ("pool=cls&pool=mean", 422, "pool"),
        ("pool=", 422, "pool"),
    ],
)
def test_attributes_are_checked_like_a_query(
    client: TestClient, attributes: str, status: int, parameter: str | None
) -> None:
    headers = {"X-Amzn-SageMaker-Custom-Attributes": attributes}
    answer = client.post("/invocations", content=picture(1), headers=headers)
    assert answer.status_code == status
    assert parameter is None or answer.json()["error"]["details"] == {"parameter": parameter}
    query_wins = client.post("/invocations?pool=mean", content=picture(1), headers={**headers, ATTRIBUTES: "pool=cls"})
    assert query_wins.json()["pool"] == "mean"


ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


def test_predictions_are_the_vectors_of_embed(client: TestClient) -> None:
    parameters = {"pool": "cls", "normalize": True, "keep": 0.5, "seed": 3}
    body = {"instances": [instance(5), instance(9)["b64"]], "parameters": parameters}
    answer = client.post(PREDICT, json=body)
    assert answer.status_code == 200 and list(answer.json()) == ["predictions"]
    files = [("image", picture(5)), ("image", picture(9))]
    query = {**parameters, "normalize": "true"}
    expected = client.post("/embed", params=query, files=files)  # type: ignore[arg-type]
    assert answer.json()["predictions"] == expected.json()["embeddings"]
    assert answer.headers["x-mae-space"] == expected.json()["space"]
    assert np.shape(answer.json()["predictions"]) == (2, 8)


def test_one_that_fails_can_be_left_out(client: TestClient) -> None:
    body = {"instances": [{"b64": "bm8="}, instance(9), {"uri": 1}], "parameters": {"on_error": "skip"}}
    answer = client.post(PREDICT, json=body).json()
    assert [prediction is None for prediction in answer["predictions"]] == [True, False, True]
    assert [(error["image"], error["code"]) for error in answer["errors"]] == [
        (0, "undecodable_image"),
        (2, "malformed_body"),
    ]


@pytest.mark.parametrize(
    ("body", "status", "code", "details"),
    [
        (b"", 400, "no_images", {}),
        (b"{", 400, "malformed_body", {}),
        (b"[]", 400, "malformed_body", {}),
        ({"instances": {}}, 400, "malformed_body", {}),
        ({"instances": []}, 400, "no_images", {}),
        ({"instances": [{"b64": "*"}]}, 400, "malformed_body", {"image": 0}),
        ({"instances": [instance(1), {"b64": "bm8="}]}, 400, "undecodable_image", {"image": 1}),
        ({"instances": [{"b64": "gs://bucket/cat.jpg"}]}, 400, "malformed_body", {"image": 0}),
        ({"instances": [{"image": "x"}]}, 400, "malformed_body", {"image": 0}),
        ({"instances": [[0.1, 0.2]]}, 400, "malformed_body", {"image": 0}),
        ({"instances": [instance(1)] * 4}, 413, "too_many_images", {"limit": 3}),
        (
            {"instances": [instance(1)], "signature_name": "x"},
            422,
            "invalid_parameter",
            {"parameter": "signature_name"},
        ),
        ({"instances": [instance(1)], "parameters": {"pool": "max"}}, 422, "invalid_parameter", {"parameter": "pool"}),
        ({"instances": [instance(1)], "parameters": {"x": 1}}, 422, "invalid_parameter", {"parameter": "x"}),
        ({"instances": [instance(1)], "parameters": [1]}, 400, "malformed_body", {}),
        ({"instances": [instance(1)], "parameters": []}, 400, "malformed_body", {}),
        ({"instances": [instance(1)], "parameters": False}, 400, "malformed_body", {}),
        ({"instances": [{"b64": "A" * 1_000_000}]}, 413, "body_too_large", {"limit": 1_000_000}),
    ],
)
def test_a_wrong_body_is_refused_in_the_shape_of_the_others(
    client: TestClient, body: object, status: int, code: str, details: dict[str, object]
) -> None:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    answer = client.post(PREDICT, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert answer.json()["error"]["details"] == details


def test_what_is_no_json_and_a_query_are_refused(client: TestClient) -> None:
    answer = client.post(PREDICT, content=picture(1), headers={"content-type": "image/png"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert client.post(PREDICT + "?pool=cls", json={"instances": [instance(1)]}).status_code == 422


def test_the_routes_are_counted_and_described(client: TestClient) -> None:
    client.post(PREDICT, json={"instances": [instance(1)]})
    client.post("/invocations", content=picture(1))
    text = client.get("/metrics").text
    for path in (PREDICT, "/invocations"):
        assert f'mae_requests_total{{code="200",endpoint="{path}"}}' in text
        assert f'mae_images_total{{endpoint="{path}"}}' in text
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/ping", "/invocations", HEALTH, PREDICT} <= set(paths)
    body = paths[PREDICT]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
    known, nothing = body["parameters"]["anyOf"]
    assert "whiten" in known["properties"] and nothing == {"type": "null"}


def test_vertex_is_not_there_unless_it_is_asked_for() -> None:
    paths = create_app(Settings()).openapi()["paths"]
    assert {"/ping", "/invocations"} <= set(paths) and not [path for path in paths if path.startswith("/v1/endpoints")]


def test_keys_are_asked_for() -> None:
    app = create_app(Settings(api_keys=("key",), predict_route=PREDICT))
    client = TestClient(app)
    for path in ("/invocations", PREDICT):
        assert client.post(path, json={"instances": [instance(1)]}).status_code == 401
    assert client.get("/ping").status_code == 503


def test_a_drain_waits_for_a_prediction() -> None:
    gate = asyncio.Event()

    async def main() -> int:
        app = create_app(Settings(predict_route=PREDICT), lambda settings, progress: ServedModel(FakeEngine()))
        service, messages = app.state.service, []

        async def receive() -> dict[str, object]:
            await gate.wait()
            gate.clear()
            return {"type": "http.request", "body": orjson.dumps({"instances": [instance(1)]}), "more_body": False}

        async def send(message: dict[str, object]) -> None:
            messages.append(message)

        scope = {"type": "http", "method": "POST", "path": PREDICT, "headers": [], "query_string": b""}
        async with app.router.lifespan_context(app):
            while service.state != "ready":
                await asyncio.sleep(0.01)
            request = asyncio.create_task(app(scope, receive, send))
            while not service.budgets.requests.used:
                await asyncio.sleep(0)
            service.handle_signal(signal.SIGTERM)
            gate.set()
            await request
            while service.exit_code is None:
                await asyncio.sleep(0.01)
        return messages[0]["status"]  # type: ignore[return-value]

    assert asyncio.run(asyncio.wait_for(main(), 60)) == 200


def test_the_served_name_stands_in_answers_and_not_in_the_space() -> None:
    app = create_app(Settings(served_name="我的/shelf"), lambda settings, progress: ServedModel(FakeEngine()))
    with TestClient(app) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        answer = client.post("/embed", content=picture(1))
        assert answer.json()["model"] == "我的/shelf@" + 12 * "0"
        assert answer.json()["space"].startswith("fake@000000000000:")
        assert answer.headers["x-mae-model"] == "%E6%88%91%E7%9A%84/shelf@000000000000"
        reconstruction = client.post("/reconstruct", content=picture(1), headers={"accept": "application/json"})
        assert reconstruction.json()["model"] == answer.json()["model"]
        info = client.get("/info").json()
        assert info["model"] == answer.json()["model"]
        assert (info["engine"]["model"], info["engine"]["served_name"]) == ("fake", "我的/shelf")
        assert 'model="fake"' in client.get("/metrics").text
