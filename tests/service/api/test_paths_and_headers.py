"""Requests as people write them, through the whole app: methods, slashes, forms, and what stands in headers."""

import asyncio
import io
import time
from collections.abc import Iterator

import httpx
import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from PIL import Image

from model.engines.base import ServedModel
from service.api.app import ROUTERS, create_app
from service.api.fast_path import InferenceRoute, inference_routes
from service.error_formats import error_format
from service.settings import Settings
from tests.support.engines import FakeEngine

EXAMPLES = {"{model:path}": "fake", "{name:path}": "embed", "{version}": "1", "{rest:path}": "status"}
"""What stands in a path in the place of each parameter."""
NOT_SERVED = ("/trace/setting", "/v2/logging", "sharedmemory/status")
"""The ends of paths that are answered 400 with a reason."""


def example(path: str) -> str:
    """A path of a route."""
    for parameter, value in EXAMPLES.items():
        path = path.replace(parameter, value)
    return path


GET_ROUTES = [
    example(route.path)
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute) and "GET" in route.methods
]
PAGES = ["/", "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css", "/favicon.ico", "/page/main.js"]


def picture(size: int = 32) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), "teal").save(out, "PNG")
    return out.getvalue()


def serve(engine: FakeEngine) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(), lambda settings, progress: ServedModel(engine))) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    yield from serve(FakeEngine())


@pytest.mark.parametrize("path", [*GET_ROUTES, *PAGES])
@pytest.mark.parametrize("form", ["{}", "{}/", "/{}"])
def test_every_get_route_answers_head(client: TestClient, path: str, form: str) -> None:
    assert len(GET_ROUTES) >= 6
    written = form.format(path)
    get = client.get("http://testserver" + written, follow_redirects=False)
    head = client.head("http://testserver" + written, follow_redirects=False)
    expected = 307 if path == "/" else 400 if path.endswith(NOT_SERVED) else 200
    assert get.status_code == expected
    assert head.status_code == get.status_code and head.content == b""
    assert (
        head.headers["content-type" if path != "/" else "location"]
        == get.headers["content-type" if path != "/" else "location"]
    )
    if path != "/metrics":  # it grows
        assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))


def test_head_of_a_route_that_takes_images_is_405(client: TestClient) -> None:
    assert client.head("/embed").status_code == 405


IMAGE_ROUTES = [
    route
    for route in inference_routes(ROUTERS)
    if error_format(route.path) in ("own", "open-inference") and route.path not in ("/explain", "/search")
]
"""Those that take a single picture as it is, and need no index."""


@pytest.mark.parametrize("route", IMAGE_ROUTES, ids=lambda route: route.path)
def test_slashes_too_many_are_served_and_counted(client: TestClient, route: InferenceRoute) -> None:
    def counted() -> float:
        lines = client.get("/metrics").text.splitlines()
        counts = [line for line in lines if line.startswith("mae_requests_total{") and route.path_format in line]
        return sum(float(line.split()[-1]) for line in counts)

    before, path = counted(), example(route.path)
    one_image = {"inference-header-content-length": "0"}  # what other routes ignore
    for written in (f"{path}/", f"/{path}", f"/{path}//"):
        url = "http://testserver" + written
        response = client.post(url, content=picture(), headers=one_image, follow_redirects=False)
        assert response.status_code == (404 if path == "/classify" else 200), response.text
        assert "location" not in response.headers and "server-timing" in response.headers
    assert counted() - before == 3


def test_a_path_of_nothing_is_a_404_in_json_with_slashes_and_without(client: TestClient) -> None:
    for written in ("/nothing", "/nothing/", "//nothing"):
        response = client.post("http://testserver" + written, content=picture(), follow_redirects=False)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")


def test_the_reason_of_a_probe_is_not_that_of_the_past(client: TestClient) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    assert client.get("/livez").json() == {"state": "ready", "reason": "", "live": True}
    service._state.change("draining")
    try:
        for path, health in (("/livez", {"live": True}), ("/readyz", {"ready": False})):
            assert client.get(path).json() == {"state": "draining", "reason": "", **health}
        service._state.change("lost", "the device has fallen off the bus")
        assert client.get("/livez").json()["reason"] == "the device has fallen off the bus"
    finally:
        service._state.change("ready", "")


def test_swaggers_untouched_form_of_reconstruct(client: TestClient) -> None:
    """Swagger UI sends the defaults in the query, and an empty field for a file that was not chosen."""
    parameters = client.get("/openapi.json").json()["paths"]["/reconstruct"]["post"]["parameters"]
    defaults = {one["name"]: one["schema"]["default"] for one in parameters if one["schema"].get("default") is not None}
    assert {"mask_ratio", "strategy", "view"} <= set(defaults)
    for mask in (("", b""), (None, b"")):
        files = [("image", ("cat.png", picture(), "image/png")), ("mask", mask)]
        response = client.post("/reconstruct", params=defaults, files=files)
        assert (response.status_code, response.headers["content-type"]) == (200, "image/png"), response.text


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("mae_tiny", "mae_tiny"),
        ("我的模型", "%E6%88%91%E7%9A%84%E6%A8%A1%E5%9E%8B"),
        ("a\r\nX: 1", "a%0D%0AX: 1"),
        ("a\x7fb", "a%7Fb"),
        ("100 % 我", "100 %25 %E6%88%91"),
    ],
)
def test_a_name_outside_latin_1_is_percent_encoded_in_headers(name: str, sent: str) -> None:
    engine = FakeEngine()
    engine.info = engine.info.model_copy(update={"model": name})
    for client in serve(engine):
        for route in ("/embed", "/reconstruct"):
            response = client.post(route, content=picture(), headers={"accept": "application/json"})
            [header] = [value for key, value in response.headers.raw if key.lower() == b"x-mae-model"]
            assert response.status_code == 200
            assert header.decode("latin-1") == f"{sent}@{'0' * 12}"
            assert response.json()["model"] == f"{name}@{'0' * 12}"


def test_a_compressed_body_is_named_before_its_type(client: TestClient) -> None:
    headers = {"content-encoding": "gzip", "content-type": "text/plain", "accept": "application/json"}
    response = client.post("/embed", content=b"\x1f\x8b\x08", headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["details"]) == (
        415,
        "unsupported_media_type",
        {"encoding": "gzip"},
    )
    assert "Content-Encoding gzip" in error["message"] and response.headers["accept-encoding"] == "identity"


def test_an_upload_at_the_end_of_a_drain_is_told_so() -> None:
    """The JSON 503, whatever the client still has to send."""

    async def main() -> None:
        app = create_app(Settings(), lambda settings, progress: ServedModel(FakeEngine()))
        service = app.state.service
        async with app.router.lifespan_context(app):
            while service.state != "ready":
                await asyncio.sleep(0.01)

            async def chunks():
                yield picture()
                service._state.change("draining")
                service._state.exit(0)
                await asyncio.sleep(0)
                yield b"more"

            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
                response = await client.post("/embed", content=chunks())
        assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
        assert response.headers["connection"] == "close"
        assert "time to finish is over" in response.json()["error"]["message"]

    asyncio.run(asyncio.wait_for(main(), 60))
