"""The engine process and its workers in one process and in virtual time; all of the protocol is the service's own.

Stand-ins are the sockets, the processes and the time (`tests.support.virtual_time`), the engine, the threads of its
lanes, and what lies before the scheduler of a worker: connections, HTTP and decoding.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
from types import SimpleNamespace
from typing import Any
from unittest import mock

from model.engines.base import FatalEngineError, ServedModel
from service.errors import EngineLost, InferenceFailed, QueueFull, ServiceError
from service.settings import Settings
from service.workers.channel import receive_first
from service.workers.engine_process import EngineProcess
from service.workers.messages import HEAD
from service.workers.scheduler_client import SchedulerClient
from service.workers.shared_counters import Column, SharedCounters
from service.workers.worker import WorkerService
from tests.service.workers.virtual_scheduler import CountingResults, VirtualScheduler
from tests.support.engines import FakeEngine
from tests.support.queueing import ALL_FOUR, image
from tests.support.virtual_time import OWNER, VirtualLoop, VirtualProcess

LOAD_S, START_S = 0.3, 0.2
BATCH, QUEUE_IMAGES = 2, 12
GREY = 128
"""The image by which the executor tests the engine."""


class Asked:
    """A request of a client, and how it has ended."""

    def __init__(self, process: VirtualProcess, numbers: list[int], at: float, is_bounded: bool) -> None:
        self.process, self.numbers, self.at, self.is_bounded = process, numbers, at, is_bounded
        self.outcomes: list[str] = []
        self.ended_at = math.inf

    def end(self, outcome: str, now: float) -> None:
        self.outcomes.append(outcome)
        self.ended_at = now


class VirtualService:
    """The whole service. Use it as `with VirtualService(...) as service: service.run(work())`."""

    def __init__(self, seed: int, workers: int = 2, lanes: int = 1, queued_slots: int = 512) -> None:
        self.loop = VirtualLoop(seed, self._run_worker)
        self.settings = Settings(http_workers=workers, queue_images=QUEUE_IMAGES, decode_threads=1, drain_timeout_s=5)
        self._queued_slots = queued_slots
        self.asked: list[Asked] = []
        self.poison: set[int] = set()
        """Images on which the engine fails."""
        self.is_fatal = False
        """Whether the next batch loses the engine."""
        self.engine = FakeEngine(BATCH, lanes, before=self._before)
        self.ready_at = self.draining_at = self.lost_at = math.inf
        self.exit_code: int | None = None
        self.services: dict[VirtualProcess, WorkerService] = {}
        self._requests: set[asyncio.Task[None]] = set()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> VirtualService:
        patches = {
            "time.monotonic": self.loop.time,
            "service.lifecycle.engine_loader.threading": SimpleNamespace(Thread=self._make_thread),
            "service.lifecycle.engine_lifecycle.Heartbeat": mock.Mock(),
            "service.lifecycle.engine_lifecycle.BatchScheduler": self._make_scheduler,
            "service.workers.worker.exit_now": lambda code: self.loop.call_soon(_current().die, code),
            "service.workers.worker.PUSH_S": 2.0,
            "service.workers.engine_process.QUEUED_SLOTS": self._queued_slots,
            "service.workers.engine_process.listen": lambda *_, **__: [socket.socket()],
            "service.workers.engine_process.stop_handshakes": lambda listener: None,
            "service.workers.engine_process.refuse_waiting": mock.AsyncMock(return_value=0),
            "service.workers.engine_process.connections_per_process": lambda settings: None,
        }
        for target, replacement in patches.items():
            self._stack.enter_context(mock.patch(target, replacement))
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.close()
        self._stack.close()

    def run(self, work: Any) -> None:
        """Starts the service, runs `work`, and ends what is left."""

        async def main() -> None:
            self.process = EngineProcess(self.settings, lambda settings, report: ServedModel(self.engine))
            self.process._state.subscribe(self._on_state)
            self.driver = asyncio.current_task()
            running = asyncio.create_task(self._run_engine_process())
            try:
                await work
            finally:
                self.loop.kills = True
                for process in self.loop.processes:
                    process.die(-9)
                await asyncio.sleep(1)
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()
                await asyncio.sleep(0.1)
                await asyncio.gather(running, return_exceptions=True)
                self.process._listener.close()
                with contextlib.suppress(OSError, ValueError):  # closed at the end of its run
                    self.process._counters.close()

        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(main())
        finally:
            asyncio.set_event_loop(None)
        assert not self.loop.errors, self.loop.errors

    @property
    def accepting(self) -> list[VirtualProcess]:
        """The workers that take connections."""
        return [process for process in self.services if process.returncode is None]

    def ask(
        self, process: VirtualProcess, numbers: list[int], seconds: float = math.inf, leaves: bool = False
    ) -> Asked:
        """A client sends a request to a worker, and leaves after `seconds`, or is answered 504 then."""
        asked = Asked(process, numbers, self.loop.now, not math.isinf(seconds))
        self.asked.append(asked)

        def start() -> None:
            OWNER.set(process)
            task = self.loop.create_task(self._request(asked, seconds, "left" if leaves else "deadline"))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

        process.on_death.append(lambda: asked.outcomes or asked.end("lost", self.loop.now))
        process.context.copy().run(start)
        return asked

    def drain(self) -> None:
        """SIGTERM."""
        self.draining_at = min(self.draining_at, self.loop.now)
        self.loop.signal_handlers[signal.SIGTERM]()

    def kill_engine_process(self, lost: int = 0) -> None:
        """SIGKILL; the last `lost` bytes of what it was writing to each worker were not written."""
        self.loop.kills = False
        for process in self.loop.processes:
            end = process.link.streams[1].reader
            if end is not None:
                end.die()
            process.link.streams[0].end(lost)
        for task in asyncio.all_tasks():
            if task is not self.driver and not any(task in process.tasks for process in self.loop.processes):
                task.cancel()

    @property
    def free_slots(self) -> list[tuple[int, int]]:
        """The number of free slots of each worker that has an engine, and of all its slots."""
        clients = [self.services[process]._scheduler for process in self.accepting]
        return [(len(client._free), client._slots.count) for client in clients if client is not None]

    def check_idle(self) -> None:
        """Nothing is held for anybody: neither by the engine process, nor by a worker, nor in the shared counters."""
        counters, lifecycle = self.process._counters, self.process._lifecycle
        columns = {column: counters.total(column) for column in (Column.REQUESTS, Column.BYTES, Column.DECODES)}
        assert not any(columns.values()), columns
        assert counters.total(Column.ADMITTED) == counters.total(Column.RELEASED)
        if lifecycle.scheduler is not None:
            assert not lifecycle.scheduler.waiting and not lifecycle.scheduler._requests
        for connection in self.process._supervisor.connections.values():
            assert not connection._sinks
        for free, count in self.free_slots:
            assert free == count
        for process in self.accepting:
            client = self.services[process]._scheduler
            assert client is None or not (client._requests or client._progress or client._sent or client._waiting)

    async def _run_engine_process(self) -> None:
        self.exit_code = await self.process.run()

    def _on_state(self) -> None:
        if self.process._state.current == "ready":
            self.ready_at = min(self.ready_at, self.loop.now)
        if self.process._state.current == "lost":
            self.lost_at = min(self.lost_at, self.loop.now)

    def _make_thread(self, target: Any, **_: Any) -> Any:
        return SimpleNamespace(start=lambda: self.loop.call_later(LOAD_S, target))

    def _make_scheduler(self, *arguments: Any, **options: Any) -> VirtualScheduler:
        scheduler = VirtualScheduler(*arguments, **options)
        scheduler.random = self.loop.random
        return scheduler

    def _before(self, images: list[int]) -> None:
        if self.is_fatal:
            raise FatalEngineError("gone")
        if self.poison & set(images):
            raise RuntimeError("poison")

    async def _run_worker(self, process: VirtualProcess) -> int:
        """What `service.workers.__main__` and the acceptor do, without connections."""
        inbox = process.link.streams[0]
        while not _has_message(inbox.buffer):
            if inbox.is_ended:
                return 1
            await asyncio.sleep(self.loop.delay())
        await asyncio.sleep(self.loop.random.uniform(0, START_S))  # imports
        settings = Settings(**receive_first(_Reader(inbox.buffer)))  # type: ignore[arg-type]
        counters = SharedCounters(os.dup(process.counters_fd), process.count)
        service = WorkerService(settings, process.end, counters, process.index, process.slots_fd)

        def free() -> None:
            cells, counters._cells = counters._cells, memoryview(bytearray(8 * len(counters._cells))).cast("q")
            cells.release()  # what is cancelled now writes nowhere: a dead process writes nothing
            for fd in (counters.fd, process.counters_fd, process.slots_fd):
                os.close(fd)

        process.on_death.append(free)
        ended = asyncio.Event()
        service.subscribe(lambda: ended.set() if service.exit_code is not None else None)
        service.start()
        await service.state_known.wait()
        counters.set(process.index, Column.ACCEPTING, 1)
        self.services[process] = service
        service.announce_start()
        await ended.wait()
        own = {task for task in self._requests if task in process.tasks}
        if own:
            await asyncio.wait(own, timeout=1)  # uvicorn's timeout_graceful_shutdown
        await service.close()
        return service.exit_code or 0

    async def _request(self, asked: Asked, seconds: float, at_end: str) -> None:
        """What the middleware, the route and the pipeline do, without HTTP and decoding."""
        service = self.services[asked.process]
        is_counted = service.state != "draining"
        if is_counted:
            service.budgets.requests.take(1)
        interrupted = self.loop.create_future()

        def interrupt() -> None:
            if not interrupted.done():
                interrupted.set_result(None)

        service.interrupts.add(interrupt)
        work = asyncio.create_task(self._infer(service, asked, self.loop.now + seconds))
        try:
            timeout = None if math.isinf(seconds) else seconds
            await asyncio.wait({work, interrupted}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                asked.end(work.result(), self.loop.now)
            elif interrupted.done():
                asked.end(service.end_error.code, self.loop.now)
            else:
                asked.end(at_end, self.loop.now)
        finally:
            service.interrupts.discard(interrupt)
            if work.cancel():
                await asyncio.wait({work})
            if is_counted:
                service.budgets.requests.give(1)

    async def _infer(self, service: WorkerService, asked: Asked, deadline: float) -> str:
        numbers, sink = asked.numbers, CountingResults(len(asked.numbers), self.loop.errors)
        try:
            scheduler = service.pipeline.scheduler
            assert isinstance(scheduler, SchedulerClient)
            request = scheduler.admit("embed", len(numbers), deadline, sink)
        except ServiceError as error:
            return error.code
        try:
            for index, number in enumerate(numbers):
                await asyncio.sleep(self.loop.delay())  # decoding
                scheduler.put(request, index, image(number), ALL_FOUR)
            rows: list[Any] = await sink.wait()
        except (InferenceFailed, EngineLost, QueueFull, ServiceError) as error:
            return error.code
        finally:
            scheduler.release(request)
            sink.is_over = True
            sink.close()
        if [[int(row.min()), int(row.max())] for row in rows] != [[number, number] for number in numbers]:
            self.loop.errors.append(f"{numbers} were answered {[row.tolist() for row in rows]}")
        return "answered"


class _Reader:
    """The socket of a worker before it has a loop."""

    def __init__(self, buffer: bytearray) -> None:
        self._buffer = buffer

    def recv(self, size: int, flags: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data


def _has_message(buffer: bytearray) -> bool:
    if len(buffer) < HEAD.size:
        return False
    length, _ = HEAD.unpack_from(buffer)
    return len(buffer) >= HEAD.size + int(length)


def _current() -> VirtualProcess:
    process = OWNER.get()
    assert process is not None
    return process
