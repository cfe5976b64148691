"""Which worker accepts a connection. The other worker exists only in the shared counters, and accepts nothing."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from service.api.app import create_app
from service.server import SIGNALS
from service.settings import Settings
from service.workers import acceptor as module
from service.workers.acceptor import FairAcceptor
from service.workers.messages import Kind, pack_state
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
        return await asyncio.wait_for(reader.readline(), 60)

    def open_connections(self) -> int:
        return len(self.acceptor.server_state.connections)

    def other_worker(self, connections: int) -> None:
        self.counters.set(OTHER, Column.ACCEPTING, 1)
        self.counters.set(OTHER, Column.CONNECTIONS, connections)


async def wait_for_nothing(address: Any, acceptor: FairAcceptor) -> None:
    pass


@contextlib.asynccontextmanager
async def serving(
    before_state: Callable[[Any, FairAcceptor], Awaitable[None]] = wait_for_nothing,
) -> AsyncIterator[Serving]:
    """`before_state` is called with the address and the acceptor before the worker is told the state."""
    engine_end, worker_end = socket.socketpair()
    counters, fd, listener = SharedCounters.create(2), os.memfd_create("test"), socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    service = WorkerService(Settings(http_workers=2, decode_threads=1), worker_end, counters, OWN, fd)
    engine = EngineEnd()
    await engine.connect(engine_end)
    acceptor = FairAcceptor(create_app(service=service), listener, counters, OWN)
    task = asyncio.ensure_future(acceptor.serve())
    await before_state(listener.getsockname(), acceptor)
    engine.send(Kind.STATE, pack_state("ready", ""))
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
            assert [signal.getsignal(number) for number in SIGNALS] == [signal.SIG_IGN] * len(SIGNALS)
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


def test_a_worker_answers_nothing_before_it_knows_the_state() -> None:
    early: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def connect(address: Any, acceptor: FairAcceptor) -> None:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        early.append((reader, writer))
        await until(lambda: acceptor.lifespan.startup_event.is_set())
        for _ in range(50):
            await asyncio.sleep(0)
        assert not acceptor.server_state.connections

    async def main() -> None:
        async with serving(connect):
            [(reader, writer)] = early
            assert (await asyncio.wait_for(reader.read(), 60)).startswith(b"HTTP/1.1 200 OK")
            writer.close()
            await writer.wait_closed()

    run(main())


def test_at_the_end_connections_that_are_made_are_answered() -> None:
    async def main() -> None:
        async with serving() as server:
            server.acceptor._loop.remove_reader(server.acceptor._listener)  # it is busy with something else
            readers = [await server.connect() for _ in range(5)]
            server.engine.send(Kind.EXIT)
            answers = [await asyncio.wait_for(reader.readline(), 60) for reader in readers]
            assert answers == [b"HTTP/1.1 200 OK\r\n"] * 5

    run(main())
