"""Which worker accepts a connection. The other worker exists only in the shared counters, and accepts nothing."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from service.api.app import create_app
from service.server import SIGNALS
from service.settings import Settings
from service.workers import acceptor as module
from service.workers.acceptor import FairAcceptor
from service.workers.messages import Kind
from service.workers.shared_counters import Column, SharedCounters
from service.workers.worker import WorkerService
from tests.service.workers.test_worker import EngineEnd
from tests.support.queueing import run
from tests.support.waiting import until

OWN, OTHER = 0, 1


@pytest.fixture(autouse=True)
def same_signals() -> Iterator[None]:
    """An acceptor makes its process ignore signals."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@dataclass
class Serving:
    acceptor: FairAcceptor
    counters: SharedCounters
    engine: EngineEnd
    address: Any
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self) -> asyncio.StreamReader:
        """A connection with a request on it, which may be accepted or not; it stays open."""
        reader, writer = await asyncio.open_connection(*self.address)
        self.clients.append(writer)
        writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        return reader

    async def status(self) -> bytes:
        """The first line of the answer on a new connection."""
        reader = await self.connect()
        return await asyncio.wait_for(reader.readline(), 5)

    def open_connections(self) -> int:
        return len(self.acceptor.server_state.connections)

    def other_worker(self, connections: int) -> None:
        self.counters.set(OTHER, Column.ACCEPTING, 1)
        self.counters.set(OTHER, Column.CONNECTIONS, connections)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Serving]:
    engine_end, worker_end = socket.socketpair()
    counters, fd, listener = SharedCounters.create(2), os.memfd_create("test"), socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    service = WorkerService(Settings(http_workers=2, decode_threads=1), worker_end, counters, OWN, fd)
    engine = EngineEnd()
    await engine.connect(engine_end)
    acceptor = FairAcceptor(create_app(service=service), listener, counters, OWN)
    task = asyncio.ensure_future(acceptor.serve())
    await engine.received(Kind.HELLO)
    server = Serving(acceptor, counters, engine, listener.getsockname())
    try:
        yield server
    finally:
        for client in server.clients:
            client.close()
            await client.wait_closed()
        engine.send(Kind.EXIT)
        await task
        assert service.exit_code == 0 and not counters.get(OWN, Column.ACCEPTING)
        listener.close()
        counters.close()
        os.close(fd)


def test_a_worker_that_is_alone_accepts_every_connection() -> None:
    async def main() -> None:
        async with serving() as server:
            assert server.counters.get(OWN, Column.ACCEPTING) == 1
            assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_IGN] * 2
            for _ in range(3):
                assert await server.status() == b"HTTP/1.1 200 OK\r\n"
            assert server.open_connections() == 3

    run(main())


def test_a_worker_with_fewer_connections_accepts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "YIELD_S", 3600.0)

    async def main() -> None:
        async with serving() as server:
            server.other_worker(2)
            for _ in range(3):
                assert await server.status() == b"HTTP/1.1 200 OK\r\n"

    run(main())


def test_a_worker_with_more_connections_yields_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "YIELD_S", 3600.0)

    async def main() -> None:
        async with serving() as server:
            server.other_worker(0)
            await server.status()
            reader = await server.connect()
            await until(lambda: server.counters.get(OWN, Column.CONNECTIONS) == 1)
            for _ in range(20):
                await asyncio.sleep(0)
            assert server.open_connections() == 1, "the other worker could not accept it"
            assert not reader.at_eof()

    run(main())


def test_a_connection_that_no_other_worker_accepts_is_not_left_alone() -> None:
    async def main() -> None:
        async with serving() as server:
            server.other_worker(0)
            for _ in range(3):
                assert await server.status() == b"HTTP/1.1 200 OK\r\n"

    run(main())


def test_a_worker_that_does_not_accept_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "YIELD_S", 3600.0)

    async def main() -> None:
        async with serving() as server:
            server.other_worker(0)
            server.counters.set(OTHER, Column.ACCEPTING, 0)
            for _ in range(2):
                assert await server.status() == b"HTTP/1.1 200 OK\r\n"

    run(main())
