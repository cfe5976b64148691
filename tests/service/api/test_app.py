"""The app around routes that it does not know: templated ones, and errors that no route foresees."""

import asyncio
import logging
import signal
import time
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from model.engines.base import ServedModel
from service.api.app import ROUTERS, create_app
from service.api.fast_path import InferenceRoute
from service.api.request import RequestContext
from service.api.responses import json_response
from service.parameters import ClassifyParameters
from service.settings import Settings
from tests.support.engines import FakeEngine
from tests.support.waiting import until

TEMPLATE = "/shelves/{name}/infer"
router = APIRouter(route_class=InferenceRoute)


@router.post(TEMPLATE)
async def infer(
    request: Request, parameters: Annotated[ClassifyParameters, Query()], name: Annotated[str, Path()]
) -> Response:
    context = RequestContext(request)
    body = await context.read_body()
    return json_response({"path": request.path_params, "name": name, "images": len(body.images)})


@router.post("/fails/{kind:path}")
async def fails(request: Request, parameters: Annotated[ClassifyParameters, Query()]) -> Response:
    raise ZeroDivisionError(request.path_params["kind"])


@pytest.fixture
def client() -> Iterator[TestClient]:
    app = create_app(Settings(), lambda settings, progress: ServedModel(FakeEngine()), routers=(*ROUTERS, router))
    with TestClient(app, raise_server_exceptions=False) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        yield client


def metric(client: TestClient, name: str, **labels: str) -> float:
    return sum(
        sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_a_templated_route_is_served_counted_and_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "service.access")
    for name in ("resnet 50", "ä"):
        response = client.post(f"/shelves/{name}/infer", content=b"image")
        assert response.json() == {"path": {"name": name}, "name": name, "images": 1}
        assert "read;dur=" in response.headers["server-timing"]
    assert client.get("/shelves/x/infer").status_code == 405, "a known route, by a method that it has not"
    assert metric(client, "mae_requests_total") == metric(client, "mae_requests_total", endpoint=TEMPLATE) == 3
    assert metric(client, "mae_images_total", endpoint=TEMPLATE) == 2
    assert {line.fields["path"] for line in caplog.records} == {TEMPLATE}  # type: ignore[attr-defined]


def test_a_templated_route_is_refused_in_the_shape_of_the_others(client: TestClient) -> None:
    response = client.post("/v2/models/x/infer?top_k=0", content=b"image")
    assert response.status_code == 422
    assert list(response.json()) == ["error"] and "top_k" in response.json()["error"], "a sentence, on these paths"
    assert metric(client, "mae_rejected_total", reason="invalid_parameter") == 1


def test_openapi_describes_the_parameter_of_the_path(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["paths"][TEMPLATE]["post"]["parameters"]
    places = {(parameter["name"], parameter["in"]) for parameter in described}
    assert places == {("name", "path"), ("top_k", "query"), ("on_error", "query")}


def test_an_unexpected_error_tells_the_request_id_and_nothing_else(client: TestClient) -> None:
    response = client.post("/fails/some/where", headers={"x-request-id": "abc"})
    assert response.status_code == 500
    message = "unexpected error, request abc"
    details = {"request_id": "abc"}
    assert response.json() == {"error": {"code": "internal_error", "message": message, "details": details}}
    assert metric(client, "mae_requests_total", endpoint="/fails/{kind}", code="500") == 1


@pytest.mark.parametrize(("method", "path", "code"), [("GET", "/nothing", "not_found"), ("GET", "/embed", None)])
def test_unknown_routes_and_methods(client: TestClient, method: str, path: str, code: str | None) -> None:
    error = client.request(method, path).json()["error"]
    assert error["code"] == (code or "method_not_allowed")
    assert error["message"].startswith(f"{method} {path}: ")


def test_a_drain_waits_for_a_templated_route() -> None:
    arrived, gate = asyncio.Event(), asyncio.Event()
    slow = APIRouter(route_class=InferenceRoute)

    @slow.post("/slow/{name}")
    async def endpoint(request: Request, parameters: Annotated[ClassifyParameters, Query()]) -> Response:
        arrived.set()
        await gate.wait()
        return Response()

    async def main() -> None:
        app = create_app(Settings(), lambda settings, progress: ServedModel(FakeEngine()), routers=(slow,))
        service, messages = app.state.service, []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)

        scope = {"type": "http", "method": "POST", "path": "/slow/x", "headers": [], "query_string": b""}
        async with app.router.lifespan_context(app):
            request = asyncio.create_task(app(scope, receive, send))
            await arrived.wait()
            service.handle_signal(signal.SIGTERM)
            assert service.budgets.requests.used == 1, "for which the drain waits"
            gate.set()
            await until(lambda: service.exit_code == 0, 10)
            await request
        assert messages[0]["status"] == 200

    asyncio.run(main())


@pytest.mark.parametrize(
    ("path", "method", "body"),
    [
        ("/no", "POST", {"error": {"code": "not_found", "message": "POST /no: Not Found", "details": {}}}),
        (
            "/v1/no",
            "POST",
            {
                "error": {
                    "message": "POST /v1/no: Not Found",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "not_found",
                }
            },
        ),
        ("/v2/no", "POST", {"error": "POST /v2/no: Not Found"}),
        ("/v2/models/x/infer/", "GET", {"error": "GET /v2/models/x/infer: Method Not Allowed"}),
    ],
)
def test_a_path_decides_the_format_of_its_errors(client: TestClient, path: str, method: str, body: Any) -> None:
    response = client.request(method, path)
    assert response.json() == body
    assert ("allow" in response.headers) == (response.status_code == 405)


def test_the_middleware_refuses_in_the_format_of_the_path() -> None:
    app = create_app(
        Settings(max_body_mb=1, api_keys=("k",)), lambda s, p: ServedModel(FakeEngine()), routers=(*ROUTERS, router)
    )
    with TestClient(app) as client:
        assert client.post("/v2/models/x/infer").json() == {
            "error": "a valid key is needed: send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
        }
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        response = client.post("/v2/models/embed/infer", content=bytes(1_000_001), headers={"x-api-key": "k"})
        assert (response.status_code, response.json()) == (
            413,
            {"error": "the body has more than 1000000 bytes (MAX_BODY_MB)"},
        )
        prefixed = TestClient(app, root_path="/vision").post("/vision/v2/models/x/infer")
        assert prefixed.json()["error"].startswith("a valid key is needed")
