"""How long a connection may say nothing, or trickle headers or a body, in virtual time."""

import json
from typing import Any

import pytest

from tests.support.connections import BODY_STALL_S, HEADER_TIMEOUT_S, KEEP_ALIVE_S, Connection, request


def test_a_connection_that_says_nothing_is_closed(connect: Any) -> None:
    async def play(connection: Connection) -> None:
        connection.loop.pass_time(HEADER_TIMEOUT_S - 1)
        assert not connection.transport.closed
        connection.loop.pass_time(1)
        assert connection.transport.closed and connection.transport.written == b""

    connect(play)


@pytest.mark.parametrize("upgrade", [[], ["Connection: Upgrade", "Upgrade: h2c"]])
def test_half_headers_are_answered_408_however_they_trickle(connect: Any, upgrade: list[str]) -> None:
    async def play(connection: Connection) -> None:
        head = request(*upgrade).partition(b"\r\n\r\n")[0]
        for i in range(9):
            await connection.send(head[i : i + 1])
            connection.loop.pass_time(1)
        assert not connection.transport.closed
        await connection.send(head[9:])
        connection.loop.pass_time(1)
        answer, _, body = connection.transport.written.partition(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n") and b"connection: close" in answer
        assert f"content-length: {len(body)}".encode() in answer
        assert json.loads(body)["error"]["code"] == "request_stalled"
        assert connection.transport.closed and not connection.requests

    connect(play)


def test_half_headers_of_a_later_request_are_cut_off_too(connect: Any) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(request())
        connection.loop.pass_time(60)
        await connection.send(b"POST /em")
        connection.loop.pass_time(HEADER_TIMEOUT_S - 1)
        await connection.send(b"bed HTTP/1.1\r\n")
        assert not connection.transport.closed
        connection.loop.pass_time(1)
        assert connection.transport.closed
        assert connection.answers == 1 and b"HTTP/1.1 408" in connection.transport.written

    connect(play)


def test_half_headers_behind_a_request_do_not_spoil_its_answer(connect: Any) -> None:
    async def play(connection: Connection) -> None:
        connection.gate.clear()
        await connection.send(request() + b"POST /em")
        connection.loop.pass_time(HEADER_TIMEOUT_S)
        assert connection.transport.written == b""
        connection.gate.set()
        await connection.send(b"")
        assert connection.answers == 1 and connection.transport.closed
        assert b"408" not in connection.transport.written

    connect(play)


def test_a_body_that_somebody_reads_is_not_the_connections_concern(connect: Any) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(request(body=b"x" * 100)[:-50])
        assert not connection.loop.armed
        connection.loop.pass_time(3600)
        await connection.send(b"x" * 50)
        assert connection.answers == 1

    connect(play)


def test_a_body_that_nobody_reads_must_go_on(connect: Any) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(request(path="/refuse", body=b"x" * 100)[:-100])
        assert connection.answers == 1
        for _ in range(5):
            connection.loop.pass_time(BODY_STALL_S - 1)
            await connection.send(b"x")
        assert not connection.transport.closed
        connection.loop.pass_time(BODY_STALL_S)
        assert connection.transport.closed

    connect(play)


def test_after_a_body_that_nobody_reads_the_connection_goes_on(connect: Any) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(request(path="/refuse", body=b"x" * 100)[:-100], b"x" * 50, b"x" * 50)
        connection.loop.pass_time(BODY_STALL_S)
        await connection.send(request())
        assert connection.answers == 2 and not connection.transport.closed

    connect(play)


@pytest.mark.parametrize("path", ["/embed", "/refuse"])
def test_line_breaks_between_requests_do_not_keep_a_connection(connect: Any, path: str) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(request(path=path), b"\r\n")
        connection.loop.pass_time(KEEP_ALIVE_S)
        assert connection.transport.closed

    connect(play)
