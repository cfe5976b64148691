"""Clients that do not read their answers."""

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from service.connection_limit import ConnectionLimit
from service.http_protocol import HttpProtocol
from service.send_timeout import SendTimeout
from tests.support.connections import BODY_STALL_S, Connection, Loop, request
from tests.support.waiting import until


class Transport:
    """What the kernel has not taken yet."""

    def __init__(self, unread: int) -> None:
        self.unread, self.aborted = unread, False

    def get_write_buffer_size(self) -> int:
        return self.unread

    def abort(self) -> None:
        self.aborted = True


def watch(unread: int) -> tuple[Any, Any, SendTimeout]:
    async def make() -> Loop:
        return Loop()

    loop, transport, timeout = asyncio.run(make()), Transport(unread), SendTimeout(7.0)
    timeout.start(loop, transport)  # type: ignore[arg-type]  # stand-ins
    return loop, transport, timeout


def test_a_client_that_takes_nothing_loses_its_connection() -> None:
    loop, transport, _ = watch(1000)
    loop.pass_time(6.9)
    assert not transport.aborted
    loop.pass_time(0.2)
    assert transport.aborted


def test_a_slow_client_is_waited_for_as_long_as_it_reads() -> None:
    loop, transport, _ = watch(1000)
    for unread in (900, 500, 499):
        transport.unread = unread
        loop.pass_time(7.0)
        assert not transport.aborted
    loop.pass_time(7.0)
    assert transport.aborted


def test_a_client_that_has_read_is_not_watched() -> None:
    loop, transport, timeout = watch(1000)
    timeout.stop()
    loop.pass_time(100.0)
    assert not transport.aborted and not loop.armed


def test_a_connection_watches_its_client_while_its_transport_is_full(connect: Any) -> None:
    async def play(connection: Connection) -> None:
        connection.transport.unread = 1_000_000
        connection.protocol.pause_writing()
        await connection.send(request())
        connection.protocol.resume_writing()
        for _ in range(5):
            await asyncio.sleep(0)
        connection.loop.pass_time(BODY_STALL_S + 1)
        assert connection.answers == 1 and not connection.transport.closed
        connection.protocol.pause_writing()
        connection.loop.pass_time(BODY_STALL_S + 1)
        assert connection.transport.closed

    connect(play)


def test_the_last_bytes_of_an_answer_are_watched_too() -> None:
    """By default a transport would say nothing of 64 KiB that it keeps, and closing it would wait for them for ever."""
    answer = bytes(50_000)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", str(len(answer)).encode()), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def main() -> None:
        loop, state = asyncio.get_running_loop(), ServerState()
        config = uvicorn.Config(app, interface="asgi3", ws="none", lifespan="off", log_config=None)
        config.load()
        protocol = HttpProtocol(
            ConnectionLimit(1), 10.0, 0.05, config=config, server_state=state, app_state={}, _loop=loop
        )
        server, client = socket.socketpair()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.sendall(request())
        await loop.connect_accepted_socket(lambda: protocol, server)
        await until(lambda: not state.connections)
        client.close()

    asyncio.run(asyncio.wait_for(main(), 60))
