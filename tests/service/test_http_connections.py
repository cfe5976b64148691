"""The ends of connections: by clients that leave or end their side, by the limit, and by the end of the server."""

import asyncio
from typing import Any

import pytest

from service.connection_limit import RESERVED_CONNECTIONS, ConnectionLimit
from service.http_protocol import FIRST_CHECK_S, LAST_HEADERS_S, RESERVE_TIMEOUT_S
from tests.support.connections import Connection, request

INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize("requests", [1, 3])
def test_a_client_that_ends_its_side_behind_its_requests_gets_its_answers(connect: Any, requests: int) -> None:
    async def play(connection: Connection) -> None:
        connection.gate.clear()
        await connection.send(request() * requests)
        assert connection.protocol.eof_received()
        assert connection.transport.written == (INTERIM if requests == 1 else b"")
        for _ in range(8):
            connection.loop.pass_time(1)
        connection.gate.set()
        for _ in range(50):
            await asyncio.sleep(0)
        assert connection.answers == requests and connection.transport.closed

    connect(play)


@pytest.mark.parametrize(
    "sent",
    [b"", request(), request()[:-2], request()[:20], b"GET /slow HTTP/1.0\r\n\r\n", request() + b"POST /"],
    ids=range(6),
)
def test_a_client_that_ends_its_side_elsewhere_has_left(connect: Any, sent: bytes) -> None:
    async def play(connection: Connection) -> None:
        if b"slow" in sent or sent.endswith(b"/"):
            connection.gate.clear()
        await connection.send(sent)
        assert not connection.protocol.eof_received()
        connection.transport.close()  # as the event loop does then
        connection.protocol.connection_lost(None)
        connection.gate.set()

    connect(play)


def test_a_client_that_ends_its_side_and_reads_no_more_has_left(connect: Any) -> None:
    async def play(connection: Connection) -> None:
        connection.gate.clear()
        await connection.send(request())
        assert connection.protocol.eof_received()
        connection.loop.pass_time(FIRST_CHECK_S)
        assert not connection.transport.closed
        connection.transport.socket.error = 104
        connection.loop.pass_time(2 * FIRST_CHECK_S)
        assert connection.transport.closed
        connection.gate.set()

    connect(play)


def test_a_client_that_leaves_behind_several_requests_gets_no_answer_to_any(
    connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The transport refuses to be written to by then, and uvicorn would log that as an error of the app."""

    async def play(connection: Connection) -> None:
        connection.gate.clear()
        await connection.send(request() * 4)
        connection.transport.close()
        connection.protocol.connection_lost(None)
        connection.gate.set()
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(connection.requests) == 1 and connection.transport.written == b""

    connect(play)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_above_the_limit_a_connection_gets_one_request_and_little_time() -> None:
    async def main() -> None:
        limit = ConnectionLimit(2)
        connections = [Connection(limit) for _ in range(3)]
        await connections[1].send(request())
        await connections[2].send(request())
        assert [connection.transport.closed for connection in connections] == [False, False, True]
        assert connections[1].marked == [False] and connections[2].marked == [True]
        assert b"connection: close" in connections[2].transport.written
        connections[2].protocol.connection_lost(None)
        silent = Connection(limit)
        silent.loop.pass_time(RESERVE_TIMEOUT_S)
        connections[0].loop.pass_time(RESERVE_TIMEOUT_S)
        assert silent.transport.closed and not connections[0].transport.closed
        connections[0].protocol.connection_lost(None)
        silent.protocol.connection_lost(None)
        third = Connection(limit)
        await third.send(request() * 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert third.answers == 2 and third.marked == [False, False]

    asyncio.run(main())


def test_where_the_reserve_is_full_the_oldest_silent_connection_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        limit = ConnectionLimit(1)
        connections = [Connection(limit) for _ in range(1 + RESERVED_CONNECTIONS)]
        connections[1].gate.clear()
        await connections[1].send(request())  # it is being answered
        late = [Connection(limit) for _ in range(3)]
        closed = [number for number, connection in enumerate(connections) if connection.transport.closed]
        assert closed == [2, 3, 4]
        await late[-1].send(request())
        assert late[-1].answers == 1
        for connection in (*connections, *late):
            connection.protocol.connection_lost(None)
        connections[1].gate.set()
        Connection(limit)

    asyncio.run(main())
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "1 connections are open, as many as MAX_CONNECTIONS allows: only probes are answered"
    ]


def test_at_the_end_a_request_that_is_on_the_way_is_answered(connect: Any) -> None:
    async def play(connection: Connection) -> None:
        connection.protocol.shutdown()
        assert not connection.transport.closed
        await connection.send(request())
        assert connection.answers == 1 and connection.transport.closed

    connect(play)


def test_at_the_end_a_connection_without_a_request_is_soon_closed(connect: Any) -> None:
    async def play(connection: Connection) -> None:
        connection.protocol.shutdown()
        connection.loop.pass_time(LAST_HEADERS_S)
        assert connection.transport.closed and connection.transport.written == b""

    connect(play)


def test_at_the_end_an_idle_connection_is_closed(connect: Any) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(request())
        connection.protocol.shutdown()
        assert connection.answers == 1 and connection.transport.closed

    connect(play)
