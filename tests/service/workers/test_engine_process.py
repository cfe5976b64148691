"""What the engine process tells its workers. They are stand-ins that record it: no process is started."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from model.engines.base import EngineInfo, ServedModel
from service.metrics import Metrics
from service.settings import Settings
from service.workers import engine_process
from service.workers.engine_process import EngineProcess
from service.workers.messages import NUMBER, Kind, unpack_engine, unpack_state
from service.workers.metrics_merge import pack_counters
from tests.support.connections import read_all
from tests.support.engines import FakeEngine
from tests.support.metrics import sample
from tests.support.queueing import run
from tests.support.waiting import until


class StubConnection:
    """A worker that accepts connections."""

    def __init__(self, worker_index: int) -> None:
        self.worker_index = worker_index
        self.started = True
        self.messages: list[tuple[Kind, bytes]] = []
        self.slot_count = 0

    def send(self, kind: Kind, content: bytes = b"") -> None:
        self.messages.append((kind, bytes(content)))

    def open(self, scheduler: Any, config: Any, slot_count: int) -> None:
        self.slot_count = slot_count

    def last(self, kind: Kind) -> bytes:
        return [content for sent, content in self.messages if sent is kind][-1]

    def has(self, kind: Kind) -> bool:
        return any(sent is kind for sent, _ in self.messages)


def counted(images: int) -> bytes:
    metrics = Metrics()
    metrics.images.labels("/embed").inc(images)
    return pack_counters(metrics)


@contextlib.asynccontextmanager
async def process_with(connections: list[StubConnection], **settings: Any) -> AsyncIterator[EngineProcess]:
    given = {"http_workers": len(connections), "host": "127.0.0.1", "port": 0, **settings}
    process = EngineProcess(
        Settings(**given), lambda settings, report: ServedModel(FakeEngine(preferred_batch=3, lanes=2))
    )
    process._supervisor.connections.update(enumerate(connections))  # type: ignore[arg-type]
    try:
        yield process
    finally:
        process._lifecycle.close()
        if process._lifecycle.scheduler is not None:
            process._lifecycle.scheduler.stop()
        process._listener.close()
        process._counters.close()


def test_every_worker_learns_of_the_engine_and_the_state() -> None:
    async def main() -> None:
        early, late = StubConnection(0), StubConnection(1)
        async with process_with([early], http_workers=2, queue_images=10) as process:
            process.on_worker_started(early)  # type: ignore[arg-type]
            assert unpack_state(early.last(Kind.STATE)) == ("loading", "starting") and not early.has(Kind.OPEN)
            process._lifecycle.start()
            await until(lambda: unpack_state(early.last(Kind.STATE))[0] == "ready")
            process.on_worker_started(late)  # type: ignore[arg-type]
            for connection in (early, late):
                info, _, slot_count, embedding = unpack_engine(connection.last(Kind.OPEN))
                assert (info.preferred_batch, info.lanes, embedding) == (3, 2, None)
                assert slot_count == connection.slot_count == 10 + 2 * 2 * 3
                assert unpack_state(connection.last(Kind.STATE))[0] == "ready"
            kinds = [kind for kind, _ in early.messages]
            assert kinds.count(Kind.OPEN) == 1
            measured = info.model_copy(update={"preferred_batch": 2})
            process._lifecycle._on_measured(measured)
            assert EngineInfo.model_validate_json(early.last(Kind.MEASURED)) == measured

    run(main())


def test_a_scrape_adds_up_what_all_workers_have_counted() -> None:
    async def main() -> None:
        first, second = StubConnection(0), StubConnection(1)
        async with process_with([first, second]) as process:
            process.on_message(second, Kind.SCRAPE, memoryview(NUMBER.pack(7)))  # type: ignore[arg-type]
            await until(lambda: first.has(Kind.PULL) and second.has(Kind.PULL))
            for connection, images in ((first, 2), (second, 5)):
                content = connection.last(Kind.PULL) + counted(images)
                process.on_message(connection, Kind.COUNTERS, memoryview(content))  # type: ignore[arg-type]
            await until(lambda: second.has(Kind.EXPOSITION))
            assert not first.has(Kind.EXPOSITION)
            content = second.last(Kind.EXPOSITION)
            assert NUMBER.unpack_from(content) == (7,)
            assert sample(content[NUMBER.size :], "mae_images_total", endpoint="/embed") == 7

    run(main())


def test_a_scrape_does_not_wait_for_a_worker_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_process, "PULL_TIMEOUT_S", 0.01)

    async def main() -> None:
        prompt, stuck = StubConnection(0), StubConnection(1)
        async with process_with([prompt, stuck]) as process:
            pushed = memoryview(NUMBER.pack(0) + counted(4))
            process.on_message(stuck, Kind.COUNTERS, pushed)  # type: ignore[arg-type]
            process.on_message(prompt, Kind.SCRAPE, memoryview(NUMBER.pack(1)))  # type: ignore[arg-type]
            await until(lambda: prompt.has(Kind.EXPOSITION))
            text = prompt.last(Kind.EXPOSITION)[NUMBER.size :]
            assert sample(text, "mae_images_total") == 4, "its counters as it has sent them last"

    run(main())
    assert "have not sent their counters" in caplog.text


def test_counts_of_a_dead_worker_are_kept() -> None:
    async def main() -> None:
        dead, other = StubConnection(0), StubConnection(1)
        async with process_with([dead, other]) as process:
            process.on_message(dead, Kind.COUNTERS, memoryview(NUMBER.pack(0) + counted(4)))  # type: ignore[arg-type]
            process.on_worker_ended(0)
            del process._supervisor.connections[0]
            other.started = False
            process.on_message(other, Kind.SCRAPE, memoryview(NUMBER.pack(1)))  # type: ignore[arg-type]
            await until(lambda: other.has(Kind.EXPOSITION))
            assert sample(other.last(Kind.EXPOSITION)[NUMBER.size :], "mae_images_total") == 4

    run(main())


def test_workers_that_cannot_be_started_end_the_service() -> None:
    async def main() -> None:
        connection = StubConnection(0)
        async with process_with([connection]) as process:
            process.on_workers_failed("no worker starts")
            await asyncio.wait_for(process._ended.wait(), 60)
            assert unpack_state(connection.last(Kind.STATE)) == ("lost", "no worker starts")
            assert process._state.exit_code == 1

    run(main())


def test_a_worker_that_wants_memory_is_heard_by_the_others() -> None:
    async def main() -> None:
        connections = [StubConnection(worker_index) for worker_index in range(3)]
        async with process_with(connections) as process:
            process.on_message(connections[1], Kind.MEMORY_WANTED, memoryview(b""))  # type: ignore[arg-type]
            assert [connection.has(Kind.MEMORY_WANTED) for connection in connections] == [True, False, True]

    run(main())


class DeadWorkers:
    """A supervisor whose workers were all killed: nobody accepts connections."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.connections: dict[int, StubConnection] = {}

    def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


@pytest.mark.parametrize(("reason", "code", "error"), [(None, 0, "draining"), ("no worker starts", 1, "engine_lost")])
def test_connections_that_no_worker_has_accepted_are_answered_at_the_end(
    reason: str | None, code: int, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_process, "WorkerSupervisor", DeadWorkers)

    async def main() -> None:
        settings = Settings(http_workers=2, host="127.0.0.1", port=0)
        process = EngineProcess(settings, lambda settings, report: ServedModel(FakeEngine()))
        clients = [socket.create_connection(process._listener.getsockname(), 10) for _ in range(5)]
        running = asyncio.create_task(process.run())
        await until(lambda: process._state.current == "ready")
        for client in clients:
            client.sendall(b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody")
        if reason is None:
            process._lifecycle.handle_signal(signal.SIGTERM)
        else:
            process.on_workers_failed(reason)
        for answer in await asyncio.gather(*(asyncio.to_thread(read_all, client) for client in clients)):
            assert answer.startswith(b"HTTP/1.1 503 ") and f'"code":"{error}"'.encode() in answer
        assert await running == code

    run(main())
