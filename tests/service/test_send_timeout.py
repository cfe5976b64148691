"""Clients that do not read their answers."""

import asyncio
from typing import Any

from service.send_timeout import SendTimeout
from tests.support.connections import BODY_STALL_S, Connection, Loop, request


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
