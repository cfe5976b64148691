"""`mae serve` where nobody can listen: one line and exit code 2, before a model is loaded or a process started."""

import os
import socket

import pytest

from tests.service.cli.conftest import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MAE_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_port_in_use(capfd: Capture, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run(capfd, "serve", "--host", "127.0.0.1", "--port", port, "--http-workers", workers)
    assert (result.code, result.out) == (2, "")
    assert result.err == f"mae: PORT: cannot listen on http://127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_address_of_another_machine(capfd: Capture, workers: str) -> None:
    result = run(capfd, "serve", "--host", "192.0.2.1", "--port", "0", "--http-workers", workers)
    assert result.code == 2
    assert result.err == "mae: HOST: cannot listen on http://192.0.2.1:0: Cannot assign requested address\n"
