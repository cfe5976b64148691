"""Connections that no worker has accepted when the service ends. Sockets are real; no process is started."""

import asyncio
import socket

import orjson
import pytest

from service.errors import Draining, EngineLost, ServiceError
from service.listener import listen
from service.workers import backlog
from service.workers.backlog import refuse_waiting
from tests.support.connections import read_all
from tests.support.queueing import run

HEAD = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
DRAINING = Draining("the server is shutting down")


def connect(listener: socket.socket, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(listener.getsockname(), 10)
    client.sendall(sent)
    return client


def refuse(listener: socket.socket, clients: list[socket.socket], error: ServiceError = DRAINING) -> list[bytes]:
    """What each client has received, after all that wait have been refused and the listener is closed."""

    async def main() -> list[bytes]:
        reading = [asyncio.to_thread(read_all, client) for client in clients]
        received, count = await asyncio.gather(asyncio.gather(*reading), refuse_waiting(listener, error))
        assert count == len(clients)
        return received

    try:
        return list(run(main()))
    finally:
        listener.close()


def test_each_request_gets_the_error_in_the_format_of_its_path() -> None:
    [listener] = listen("127.0.0.1", 0)
    paths = [b"/embed?pool=cls", b"/v1/embeddings", b"/readyz"]
    clients = [connect(listener, HEAD % (path, 4) + b"body") for path in paths]
    own, openai, probe = (answer.split(b"\r\n\r\n") for answer in refuse(listener, clients))
    for head, content in (own, openai, probe):
        assert head.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: 1\r\n" in head
        assert b"\r\nconnection: close\r\n" in head and b"\r\ncontent-length: %d\r\n" % len(content) in head
    assert orjson.loads(own[1])["error"] == {"code": "draining", "message": DRAINING.message, "details": {}}
    assert orjson.loads(openai[1])["error"]["type"] == "server_error"
    assert orjson.loads(probe[1])["error"]["code"] == "draining"


def test_the_error_is_the_one_that_is_given() -> None:
    [listener] = listen("127.0.0.1", 0)
    [answer] = refuse(listener, [connect(listener, HEAD % (b"/embed", 0))], EngineLost("no worker starts"))
    assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "engine_lost"


def test_a_client_with_a_large_body_gets_its_answer() -> None:
    """A server that closes without reading the body would reset the connection."""
    [listener] = listen("127.0.0.1", 0)
    clients = [connect(listener, HEAD % (b"/embed", 200_000) + bytes(200_000)) for _ in range(5)]
    for answer in refuse(listener, clients):
        assert answer.startswith(b"HTTP/1.1 503 ")


def test_a_silent_client_is_closed_without_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "LAST_HEADERS_S", 0.05)
    [listener] = listen("127.0.0.1", 0)
    silent, slow = connect(listener), connect(listener, b"POST /embed HTTP/1.1\r\nHo")
    nothing, answer = refuse(listener, [silent, slow])
    assert nothing == b"" and answer.startswith(b"HTTP/1.1 503 ")


def test_clients_that_have_left_cost_nothing() -> None:
    [listener] = listen("127.0.0.1", 0)
    left = [connect(listener, HEAD % (b"/embed", 0)) for _ in range(3)]
    for client in left:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))  # close resets
        client.close()
    stays = connect(listener, HEAD % (b"/embed", 0))

    async def main() -> bytes:
        answer = asyncio.create_task(asyncio.to_thread(read_all, stays))
        await refuse_waiting(listener, DRAINING)
        return await answer

    assert run(main()).startswith(b"HTTP/1.1 503 ")
    assert run(refuse_waiting(listener, DRAINING)) == 0
    listener.close()
