"""The image's health check, as the container runs it, against servers that say one thing."""

import importlib.util
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest

from service.settings import DEFAULT_PORT, PLATFORM_VARIABLES, load_settings

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


def without_ports() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("MAE_PORT", "AIP_HTTP_PORT", "PORT")}


def check(port: int, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**without_ports(), "MAE_PORT": str(port), **variables}
    command = [sys.executable, "-I", str(SCRIPT)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


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


@pytest.mark.parametrize("server", [200], indirect=True)
@pytest.mark.parametrize("variable", ["AIP_HTTP_PORT", "PORT"])
def test_the_port_of_a_platform(server: HTTPServer, variable: str) -> None:
    other = {"PORT": "1"} if variable == "AIP_HTTP_PORT" else {}
    assert check(server.server_port, **{"MAE_PORT": "", **other, variable: str(server.server_port)}).returncode == 0


def healthcheck() -> ModuleType:
    spec = importlib.util.spec_from_file_location("healthcheck", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_server_and_its_check_find_the_port_by_one_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    module = healthcheck()
    assert ("MAE_PORT", *PLATFORM_VARIABLES["port"]) == module.PORT_VARIABLES
    assert module.DEFAULT_PORT == DEFAULT_PORT
    values = ("", "81", "82", "tcp://10.0.0.1:8000")
    for own, vertex, other in itertools.product(values, values[:2], values[:2]):
        for variable, value in zip(module.PORT_VARIABLES, (own, vertex, other), strict=True):
            monkeypatch.setenv(variable, value)
        assert module.own_port() == load_settings().port, (own, vertex, other)


@pytest.mark.parametrize(
    ("command", "is_sagemaker"),
    [
        (b"tini\0--\0serve\0", True),
        (b"tini\0--\0serve\0--precision\0fp32\0", True),
        (b"/sbin/docker-init\0--\0tini\0--\0serve\0", True),
        (b"tini\0--\0mae\0serve\0", False),
        (b"/sbin/docker-init\0--\0tini\0--\0mae\0serve\0", False),
        (b"serve\0", False),
        (b"", False),
    ],
)
def test_the_argument_serve_is_found_in_the_first_process(command: bytes, is_sagemaker: bool) -> None:
    assert healthcheck().runs_for_sagemaker(command) is is_sagemaker


@pytest.mark.parametrize(("port", "heard"), [({}, "8080"), ({"PORT": "81"}, "81"), ({"PORT": ""}, "8080")])
def test_serve_hands_its_port_and_its_arguments_on(tmp_path: Path, port: dict[str, str], heard: str) -> None:
    """A `mae` that says what it was given stands in the place of the real one."""
    mae = tmp_path / "mae"
    mae.write_text('#!/bin/sh\necho "$PORT ${MAE_WEIGHTS:-none}" "$@"\n')
    mae.chmod(0o755)
    environment = {**without_ports(), **port, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment.pop("MAE_WEIGHTS", None)
    script = SCRIPT.with_name("serve.sh")
    done = subprocess.run([script, "--precision", "fp32"], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{heard} none serve --precision fp32\n"
