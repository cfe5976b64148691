"""Where the service stands: behind a proxy with a path prefix, and beside pages of other origins."""

import http.client
import io
import re
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
import uvicorn
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from PIL import Image

from model.engines.base import ServedModel
from service.api import cors
from service.api.app import ROUTERS, create_app
from service.paths import OWN_SEGMENTS
from service.settings import Settings
from tests.support.app import serve_app
from tests.support.engines import FakeEngine

ORIGIN = "https://app.example"


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(out, "PNG")
    return out.getvalue()


def serve(**settings: object) -> AbstractContextManager[TestClient]:
    return serve_app(FakeEngine(), **settings)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A service with a prefix, a key and origins behind uvicorn, on a port of its own."""
    settings = Settings(root_path="/a/mae", cors_origins=(ORIGIN, "null"), api_keys=("key",))
    app = create_app(settings, lambda settings, progress: ServedModel(FakeEngine()))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started or app.state.service.state != "ready":
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def prefixed(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client


@contextmanager
def proxy(port: int, prefix: str, strips: bool) -> Iterator[str]:
    """A reverse proxy that serves `port` under `prefix` and nothing else; it strips the prefix or passes it on."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            if urlsplit(self.path).path != prefix and not self.path.startswith(prefix + "/"):
                self.send_error(404, "outside the prefix")
                return
            path = (self.path.removeprefix(prefix) or "/") if strips else self.path
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request(self.command, path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_POST = do_OPTIONS = forward

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}{prefix}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("strips", [True, False])
@pytest.mark.slow
def test_everything_works_behind_a_proxy_with_a_prefix(port: int, strips: bool) -> None:
    """As a browser does it: every link is resolved against the address of what holds it."""
    with proxy(port, "/a/mae", strips) as base, httpx.Client(headers={"x-api-key": "key"}) as client:
        for start in ("/", "/docs", "/docs/"):
            page = client.get(base + start, follow_redirects=True)
            assert page.status_code == 200 and "swagger-ui" in page.text
            links = re.findall(r"""(?:href|src)="([^"]+)"|url: '([^']+)'""", page.text)
            addresses = [urljoin(str(page.url), link or url) for link, url in links]
            assert len(addresses) == 4
            for address in addresses:
                assert address.startswith(base + "/")
                assert client.get(address).status_code == 200, address
        page = client.get(base, headers={"accept": "text/html"}, follow_redirects=not strips)
        if strips:  # the proxy has sent "/" for the prefix alone, so only the address with a slash can work
            page = client.get(base + "/", headers={"accept": "text/html"})
        links = re.findall(r"""(?:href|src)="([^"#:]+)\"""", page.text)
        assert page.status_code == 200 and links
        for link in links:
            assert client.get(urljoin(str(page.url), link)).status_code == 200, link
        description = client.get(base + "/openapi.json").json()
        [server] = description["servers"]
        api = urljoin(base + "/openapi.json", server["url"])
        assert api == base
        assert client.post(api + "/embed", content=picture()).json()["count"] == 1
        assert client.get(api + "/info").status_code == 200
        assert client.get(api + "/v2/health/ready").status_code == 200
        assert client.get(api + "/nothing").json()["error"]["code"] == "not_found"
        assert client.post(api + "/embed", headers={"x-api-key": "wrong"}, content=b"").status_code == 401


def test_the_prefix_is_no_other_path(prefixed: httpx.Client) -> None:
    """Counted under the path of the route, and taken for a prefix only as a whole."""
    headers = {"x-api-key": "key"}
    for path in ("/embed", "/a/mae/embed", "/a/mae//embed/"):
        assert prefixed.post(path, content=picture(), headers=headers).status_code == 200
    for path in ("/a/maembed", "/a/mae/a/mae/embed", "/mae/embed"):
        assert prefixed.post(path, content=picture(), headers=headers).status_code == 404
    answer = prefixed.get("/a/mae?x=1", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/a/mae/?x=1")
    assert len(answer.headers["x-request-id"]) == 32
    assert 'endpoint="/embed"' in prefixed.get("/metrics").text
    assert "/a/mae" not in prefixed.get("/metrics").text


def test_without_a_prefix_nothing_is_said_of_servers() -> None:
    with serve() as client:
        assert "servers" not in client.get("/openapi.json").json()
        assert "access-control-allow-origin" not in client.get("/readyz", headers={"origin": ORIGIN}).headers
        asked = {"origin": ORIGIN, "access-control-request-method": "POST"}
        assert client.options("/embed", headers=asked).status_code == 405


def test_a_preflight_needs_no_key_and_is_not_counted(prefixed: httpx.Client) -> None:
    before = prefixed.get("/metrics").text.count("mae_requests_total{")
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,x-stainless-os,content-type",
    }
    for path in ("/embed", "/a/mae/embed", "/classify", "/info"):
        answer = prefixed.options(path, headers=asked)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in answer.headers["access-control-allow-methods"]
        allowed = answer.headers["access-control-allow-headers"].split(",")
        assert {"authorization", "x-stainless-os", "content-type"} <= set(allowed)
        assert answer.headers["x-request-id"]
    assert prefixed.get("/metrics").text.count("mae_requests_total{") == before


@pytest.mark.parametrize(("key", "status"), [("key", 200), ("wrong", 401)])
@pytest.mark.parametrize("origin", [ORIGIN, "null"])
def test_a_page_of_an_allowed_origin_may_read_answers_and_errors(
    prefixed: httpx.Client, key: str, status: int, origin: str
) -> None:
    answer = prefixed.post("/embed", content=picture(), headers={"origin": origin, "x-api-key": key})
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == origin
    assert "Origin" in answer.headers["vary"]
    exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
    ours = {name for name in answer.headers if name.startswith("x-") or name == "server-timing"}
    assert ours <= exposed


def test_a_page_of_another_origin_sees_a_service_without_cors(prefixed: httpx.Client) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST", "x-api-key": "key"}
    answer = prefixed.options("/embed", headers=asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    answer = prefixed.post("/embed", content=picture(), headers=asked)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers and answer.headers["vary"] == "Origin"


def test_every_origin_may_be_allowed() -> None:
    with serve(cors_origins=("*",)) as client:
        answer = client.get("/readyz", headers={"origin": ORIGIN})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers


def test_pages_may_read_every_header_of_ours() -> None:
    source = "".join(path.read_text() for path in Path(cors.__file__).parents[1].rglob("*.py"))
    named = {name.lower() for name in re.findall(r"\bx-mae-[a-z-]*[a-z]", source)}
    assert {"x-mae-model", "x-mae-space", "x-mae-seed", "x-mae-loss", "x-mae-mask-ratio"} <= named
    assert named <= {name.lower() for name in cors.EXPOSED}


def test_the_settings_know_every_path_of_the_service() -> None:
    app = create_app(Settings())
    paths = [route.path for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    paths += [route.path for route in app.routes if hasattr(route, "path")]
    assert {path.split("/")[1] for path in paths} - {""} <= OWN_SEGMENTS
