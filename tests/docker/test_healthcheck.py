"""The image's health check, as the container runs it, against servers that say one thing."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.live

SCRIPT = Path(__file__).parents[2] / "docker/healthcheck.py"


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[HTTPServer]:
    """Answers /readyz with the status of the test's parameter, and any other path with 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(b'{"state": "said"}')

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def check(port: int, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MAE_PORT": str(port), **variables}
    command = [sys.executable, "-I", str(SCRIPT)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=20)


@pytest.mark.parametrize(("server", "code"), [(200, 0), (503, 1), (404, 1)], indirect=["server"])
def test_healthy_is_ready(server: HTTPServer, code: int) -> None:
    answer = check(server.server_port)
    assert answer.returncode == code
    assert "said" in answer.stdout


@pytest.mark.parametrize("server", [200], indirect=True)
@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "localhost"])
def test_the_address_that_was_set(server: HTTPServer, host: str) -> None:
    assert check(server.server_port, MAE_HOST=host).returncode == 0


@pytest.mark.parametrize("server", [200], indirect=True)
def test_another_address_is_asked_and_no_other(server: HTTPServer) -> None:
    """The server listens on 127.0.0.1 alone."""
    answer = check(server.server_port, MAE_HOST="127.0.0.2")
    assert answer.returncode == 1 and "ConnectionRefusedError" in answer.stdout


def test_a_port_that_kubernetes_has_set_is_no_port() -> None:
    answer = check(1, MAE_PORT="tcp://10.0.0.1:8000", MAE_HOST="127.0.0.3")
    assert answer.returncode == 1 and not answer.stderr


def test_nothing_listens() -> None:
    answer = check(1)
    assert answer.returncode == 1
    assert "ConnectionRefusedError" in answer.stdout and not answer.stderr
