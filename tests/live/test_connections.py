"""Clients that are slow, half dead or ask for another protocol, on real connections, with workers and without."""

import json
import re
import signal
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.live.conftest import SECONDS, LiveServer, Start
from tests.support.clients import grey

FAKE = {"FAKE_S": "0.001"}


@pytest.fixture(params=[0, 2], ids=["one process", "workers"], scope="module")
def patient(request: pytest.FixtureRequest, start_server: Start) -> LiveServer:
    """Cuts nobody off while a test runs."""
    return start_server(FAKE, http_workers=request.param, body_stall_s=600, header_timeout_s=600, request_timeout_s=600)


@pytest.fixture(scope="module")
def strict(start_server: Start) -> LiveServer:
    """Cuts off who does not go on, but no test that stands still for a moment between two lines."""
    return start_server(FAKE, http_workers=1, body_stall_s=3, header_timeout_s=3)


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for one in opened:
        one.close()


def connect(server: LiveServer, sockets: list[socket.socket], *sent: bytes) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), SECONDS)
    sockets.append(one)
    one.sendall(b"".join(sent))
    return one


def head(*headers: str, length: int) -> bytes:
    lines = ["POST /embed HTTP/1.1", "Host: x", "Content-Type: image/png", f"Content-Length: {length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def read_all(one: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    received = b""
    while chunk := one.recv(65536):
        received += chunk
    return received


def code_of(answer: bytes) -> tuple[bytes, str]:
    """The status and the code of an error."""
    return answer.split(b" ", 2)[1], json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]


def test_slow_clients_cost_nobody_else_an_answer(patient: LiveServer, sockets: list[socket.socket]) -> None:
    for number in range(8):
        connect(patient, sockets, head(length=32_000_000), b"x" * (number * 1000))
    for _ in range(300):
        connect(patient, sockets, b"POST /embed HTTP/1.1\r\nHost: ")
    patient.wait_for_metric("mae_inflight_requests", 8)
    assert patient.metric("mae_inflight_bytes") <= 28_000
    for shade in (10, 20):
        answer = httpx.post(patient.url + "/embed", content=grey(shade))
        assert answer.status_code == 200 and answer.json()["embeddings"][0][0] == shade
    assert httpx.get(patient.url + "/readyz").status_code == 200
    for one in sockets:
        one.close()
    patient.wait_for_metric("mae_inflight_requests", 0)
    patient.wait_for_metric("mae_inflight_bytes", 0)


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.2"])
def test_an_upgrade_is_ignored(patient: LiveServer, sockets: list[socket.socket], upgrade: str) -> None:
    body = grey(30)
    one = connect(patient, sockets, head("Connection: Upgrade", f"Upgrade: {upgrade}", length=len(body)), body)
    one.sendall(head("Connection: close", length=len(body)) + body)  # a second one over the same connection
    answers = read_all(one)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 2
    for content in re.findall(rb"\r\n\r\n(\{.*?\]\]\})", answers, re.DOTALL):
        assert json.loads(content)["embeddings"][0][0] == 30


def test_clients_that_do_not_go_on_are_cut_off(strict: LiveServer, sockets: list[socket.socket]) -> None:
    silent = connect(strict, sockets)
    half = connect(strict, sockets, b"POST /embed HTTP/1.1\r\nHost: ")
    stalled = connect(strict, sockets, head(length=32_000_000), b"x")
    assert read_all(silent) == b""
    assert code_of(read_all(half)) == (b"408", "request_stalled")
    assert code_of(read_all(stalled)) == (b"408", "request_stalled")
    strict.wait_for_metric("mae_rejected_total", 1, reason="request_stalled")
    strict.wait_for_metric("mae_requests_total", 1, code="408")
    assert httpx.post(strict.url + "/embed", content=grey(1)).status_code == 200


@pytest.mark.parametrize("workers", [0, 2], ids=["one process", "workers"])
def test_what_is_not_finished_at_the_end_of_the_drain_is_told_so(
    start_server: Start, sockets: list[socket.socket], workers: int
) -> None:
    """Uploads, and in one process also a decode that hangs: the process ends all the same."""
    fake = FAKE if workers else {"FAKE_DECODE_S": "600"}
    server = start_server(fake, http_workers=workers, drain_timeout_s=0.3)
    unfinished = [connect(server, sockets, head(length=32_000_000), b"x" * 1000) for _ in range(3)]
    if not workers:
        body = grey(1)
        unfinished += [connect(server, sockets, head(length=len(body)), body) for _ in range(2)]
    server.wait_for_metric("mae_inflight_requests", len(unfinished))
    server.process.send_signal(signal.SIGTERM)
    for one in unfinished:
        assert code_of(read_all(one)) == (b"503", "draining")
    assert server.process.wait(SECONDS) == 0
    assert "Traceback" not in server.text() and "cut off" in server.text()


@pytest.mark.parametrize("kib", [65, 1000])
def test_large_headers_are_answered_431(patient: LiveServer, kib: int) -> None:
    answer = httpx.get(f"{patient.url}/livez", headers={"X": "a" * 1024 * kib})
    assert answer.status_code == 431 and answer.json()["error"]["code"] == "headers_too_large"


def test_a_full_server_still_answers_probes_and_the_end_of_its_terminal_drains_it(
    start_server: Start, sockets: list[socket.socket]
) -> None:
    server = start_server(FAKE, max_connections=20, header_timeout_s=600)
    for _ in range(100):
        connect(server, sockets)
    for path in ("/livez", "/readyz", "/metrics"):
        assert httpx.get(server.url + path).status_code == 200
    refused = httpx.post(f"{server.url}/embed", content=grey(1))
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "too_many_connections"
    assert refused.headers["connection"] == "close" and refused.headers["retry-after"] == "1"
    server.wait_for_metric("mae_rejected_total", 1, reason="too_many_connections")
    for one in sockets:
        one.close()
    server.wait_for(lambda: httpx.post(f"{server.url}/embed", content=grey(1)).status_code == 200)
    assert server.text().count("as many as MAX_CONNECTIONS allows") == 1

    body = grey(40)
    half_closed = connect(server, sockets, head(length=len(body)), body)
    half_closed.shutdown(socket.SHUT_WR)
    answers = read_all(half_closed)
    assert b"HTTP/1.1 200 OK" in answers and b"[[40.0," in answers.replace(b" ", b"")

    for _ in range(20):
        connect(server, sockets, (head(length=len(body)) + body) * 4).close()
    server.wait_for_metric("mae_inflight_requests", 0)
    assert server.metric("mae_requests_total", code="500") == 0

    server.process.send_signal(signal.SIGHUP)
    assert server.process.wait(SECONDS) == 0
    assert "Traceback" not in server.text()
