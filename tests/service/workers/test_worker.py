"""A worker's service over a real channel, whose other end is a stand-in for the engine process."""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from model.checkpoints.heads import Heads
from model.engines.batch_seconds import BatchCurves, BatchSeconds
from service.errors import Draining, EngineLost, NotReady, ServiceError
from service.settings import Settings
from service.workers import worker
from service.workers.channel import Channel
from service.workers.messages import NUMBER, Kind, pack_engine, pack_state
from service.workers.metrics_merge import unpack_counters
from service.workers.shared_counters import SharedCounters
from service.workers.worker import WorkerService
from tests.support.engines import fake_info
from tests.support.queueing import run
from tests.support.waiting import until


class EngineEnd(Channel):
    """Records what the worker sends."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[tuple[Kind, bytes]] = []

    def message_received(self, kind: Kind, content: memoryview) -> None:
        self.messages.append((kind, bytes(content)))

    async def received(self, kind: Kind) -> bytes:
        """The content of the first message of this kind."""
        await until(lambda: kind in dict(self.messages))
        return next(content for sent, content in self.messages if sent is kind)

    def open(self, state: Any = "ready", progress: str = "") -> None:
        self.send(Kind.OPEN, pack_engine(fake_info(), Heads(), 4))
        self.send(Kind.STATE, pack_state(state, progress))


@dataclass
class Connected:
    service: WorkerService
    engine: EngineEnd
    exit_codes: list[int]
    """What the process of the worker would have ended with at once."""


@contextlib.asynccontextmanager
async def connected(fd: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connected]:
    exit_codes: list[int] = []
    monkeypatch.setattr(worker, "exit_now", exit_codes.append)
    engine_end, worker_end = socket.socketpair()
    counters = SharedCounters.create(1)
    service = WorkerService(Settings(http_workers=1, decode_threads=1), worker_end, counters, 0, fd)
    engine = EngineEnd()
    await engine.connect(engine_end)
    service.start()
    try:
        yield Connected(service, engine, exit_codes)
    finally:
        await service.close()
        engine.close()
        await engine.disconnected.wait()
        counters.close()


@pytest.fixture
def fd() -> Any:
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)


def test_state_and_engine_are_those_of_the_engine_process(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with connected(fd, monkeypatch) as pair:
            service = pair.service
            with pytest.raises(NotReady):
                _ = service.pipeline
            pair.engine.send(Kind.STATE, pack_state("loading", "compiling"))
            await until(lambda: service.progress == "compiling")
            pair.engine.open()
            await until(lambda: service.state == "ready")
            assert service.pipeline.info == fake_info()
            for state, refusal in (("draining", Draining), ("lost", EngineLost)):
                pair.engine.send(Kind.STATE, pack_state(state, "why"))  # type: ignore[arg-type]
                await until(lambda state=state: service.state == state)
                with pytest.raises(refusal):
                    _ = service.pipeline

    run(main())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_the_description_of_the_engine_follows_its_measurement(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = BatchSeconds(lone=1.0, lanes={1: 1.0, 2: 1.9}, joined={1: 0.6})
    changes = {"batch_curves": BatchCurves(shapes={"embed whole": seconds}), "joined": True}
    measured = fake_info().model_copy(update=changes)

    async def main() -> None:
        async with connected(fd, monkeypatch) as pair:
            pair.engine.send(Kind.MEASURED, measured.model_dump_json().encode())  # OPEN comes later, and tells the same
            pair.engine.open()
            await until(lambda: pair.service.state == "ready")
            assert pair.service.pipeline.info == fake_info()
            pair.engine.send(Kind.MEASURED, measured.model_dump_json().encode())
            await until(lambda: pair.service.pipeline.info == measured)

    run(main())


def test_counters_are_sent_by_themselves_and_when_they_are_pulled(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with connected(fd, monkeypatch) as pair:
            pushed = await pair.engine.received(Kind.COUNTERS)
            assert NUMBER.unpack_from(pushed) == (0,)
            pair.service.metrics.images.labels("/embed").inc(3)
            pair.engine.messages.clear()
            pair.engine.send(Kind.PULL, NUMBER.pack(9))
            await until(lambda: any(content.startswith(NUMBER.pack(9)) for _, content in pair.engine.messages))
            [pulled] = [content for _, content in pair.engine.messages if content.startswith(NUMBER.pack(9))]
            counts = unpack_counters(pulled[NUMBER.size :])
            assert counts["mae_images_total", (("endpoint", "/embed"),)] == 3

    run(main())


@pytest.mark.parametrize("text", [b"mae_ready 1.0\n", b""])
def test_the_engine_process_writes_the_metrics(fd: int, monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    async def main() -> None:
        async with connected(fd, monkeypatch) as pair:
            scraping = asyncio.ensure_future(asyncio.to_thread(pair.service.exposition))
            number = await pair.engine.received(Kind.SCRAPE)
            pair.engine.send(Kind.EXPOSITION, NUMBER.pack(12345) + b"of another scrape")
            pair.engine.send(Kind.EXPOSITION, number + text)
            if text:
                assert await scraping == text
            else:
                with pytest.raises(ServiceError, match="cannot be written"):
                    await scraping

    run(main())


def test_a_worker_that_is_told_to_end_ends_with_0(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with connected(fd, monkeypatch) as pair:
            pair.engine.open()
            pair.engine.send(Kind.EXIT)
            await until(lambda: pair.service.exit_code == 0)
            pair.engine.close()
            await pair.service._connection.disconnected.wait()
            assert not pair.exit_codes

    run(main())


def test_a_worker_without_an_engine_process_ends_at_once(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with connected(fd, monkeypatch) as pair:
            await pair.engine.received(Kind.COUNTERS)
            pair.engine.close()
            await until(lambda: pair.exit_codes == [1])

    run(main())


def test_the_last_counters_are_sent_before_the_end(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with connected(fd, monkeypatch) as pair:
            await pair.engine.received(Kind.COUNTERS)
            pair.service.metrics.images.labels("/embed").inc(5)
            await pair.service.close()
            await pair.engine.disconnected.wait()
            _, last = pair.engine.messages[-1]
            assert unpack_counters(last[NUMBER.size :])["mae_images_total", (("endpoint", "/embed"),)] == 5

    run(main())


def test_memory_that_another_worker_wants(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with connected(fd, monkeypatch) as pair:
            wanted: list[int] = []
            pair.service.on_memory_wanted = lambda: wanted.append(1)
            pair.engine.send(Kind.MEMORY_WANTED)
            await until(lambda: wanted == [1])
            pair.service.want_memory()
            await pair.engine.received(Kind.MEMORY_WANTED)

    run(main())
