"""The process that has the engine: it starts the workers, and decides the state of the whole service."""

from __future__ import annotations

import asyncio
import itertools
import logging

import uvicorn

from model.checkpoints.heads import Heads
from model.engines.base import EngineInfo
from service.connection_limit import connections_per_process
from service.errors import Draining, EngineLost, ServiceError
from service.inference.batch_scheduler import BatchScheduler
from service.inference.limits import LocalBudget
from service.lifecycle.engine_lifecycle import EngineLifecycle
from service.lifecycle.engine_loader import BuildEngine
from service.lifecycle.state import ServiceState
from service.listener import listen, stop_handshakes
from service.metrics import Metrics
from service.server import drain_signals, leave
from service.settings import Settings
from service.tracing.configuration import load_tracer
from service.workers.backlog import refuse_waiting
from service.workers.messages import NUMBER, Kind, pack_engine, pack_state
from service.workers.metrics_merge import CounterAggregator, exposition, unpack_counters
from service.workers.shared_counters import SharedCounters, shared_budgets
from service.workers.supervisor import WorkerSupervisor
from service.workers.worker_connection import WorkerConnection
from service.workers.worker_searches import WorkerSearches

log = logging.getLogger(__name__)
# How long a scrape waits for the counters of a worker; after that it uses those that the worker sent last.
PULL_TIMEOUT_S = 0.5
# The largest number of slots for a worker's queued images; its other images wait in its own memory.
QUEUED_SLOTS = 512


class EngineProcess:
    """The engine, the workers, and the connections between them."""

    def __init__(self, settings: Settings, build_engine: BuildEngine) -> None:
        """Listens, but loads no engine and starts no worker yet. Call this on the event loop.

        Raises:
            InvalidSettings: nobody can listen on HOST and PORT, MAX_CONNECTIONS needs too many open files, or a
                variable OTEL_… is wrong.
        """
        connections_per_process(settings)  # the workers inherit the limit on open files
        [self._listener] = listen(settings.host, settings.port, first_only=True)
        self._settings = settings
        self._counters = SharedCounters.create(settings.http_workers, len(settings.api_keys))
        self._metrics = Metrics()
        self._tracer = load_tracer()
        self._aggregator = CounterAggregator()
        self._numbers = itertools.count(1)
        self._pulls: dict[int, asyncio.Future[None]] = {}
        """The pulls that no worker has answered yet, by number."""
        self._scrapes: set[asyncio.Task[None]] = set()
        self._searches: WorkerSearches | None = None
        """The searches of all workers; None until the index is opened, and without INDEX."""
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._state = ServiceState()
        self._state.subscribe(self._on_state_change)
        self._lifecycle = EngineLifecycle(
            settings,
            build_engine,
            self._state,
            self._metrics,
            shared_budgets(settings, self._counters, 0),
            LocalBudget(),  # no limit: the workers enforce QUEUE_IMAGES before they send an image
            self._on_open,
            self._tracer,
            self._on_measured,
        )
        # A file of keys may have changed when a worker is replaced, and all workers must have the same keys.
        for_workers = settings.model_copy(update={"api_keys_file": None}).model_dump_json().encode()
        self._supervisor = WorkerSupervisor(self._counters, self._listener, for_workers, listener=self)

    async def run(self) -> int:
        """Serves until a signal has been drained or the engine is lost; returns the exit code."""
        for number in drain_signals():
            self._loop.add_signal_handler(number, self._lifecycle.handle_signal, number)
        self._lifecycle.start()
        self._supervisor.start()
        await self._ended.wait()
        stop_handshakes(self._listener)  # the workers still accept and answer the connections in its queue
        await self._supervisor.stop()
        if refused := await refuse_waiting(self._listener, self._end_error()):
            log.warning("%d connections that no worker has accepted were refused", refused)
        self._listener.close()
        for scrape in self._scrapes:
            scrape.cancel()
        if self._searches is not None:
            self._searches.close()
        self._lifecycle.close()
        if self._lifecycle.scheduler is not None:
            self._lifecycle.scheduler.stop()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)
        self._metrics.close()
        self._counters.close()
        return self._state.exit_code or 0

    def on_worker_started(self, connection: WorkerConnection) -> None:
        """Tells a new worker the state of the service, and its engine if there is one."""
        if self._lifecycle.scheduler is not None:
            self._open_connection(connection, self._lifecycle.scheduler, self._lifecycle.heads)
        self._send_state(connection)

    def on_message(self, connection: WorkerConnection, kind: Kind, content: memoryview) -> None:
        """Handles the messages about metrics, memory and searches."""
        if kind is Kind.COUNTERS:
            self._aggregator.update(connection.worker_index, unpack_counters(content[NUMBER.size :]))
            (number,) = NUMBER.unpack_from(content)
            if pull := self._pulls.pop(number, None):
                pull.set_result(None)
        elif kind is Kind.MEMORY_WANTED:
            for other in self._supervisor.connections.values():
                if other is not connection:
                    other.send(Kind.MEMORY_WANTED)
        elif kind is Kind.SCRAPE:
            scrape = self._loop.create_task(self._scrape(connection, *NUMBER.unpack(content)))
            self._scrapes.add(scrape)
            scrape.add_done_callback(self._scrapes.discard)
        else:
            assert self._searches is not None, "a worker searches before it is told of an index"
            self._searches.message_received(connection, kind, content)

    def on_worker_ended(self, worker_index: int) -> None:
        """Keeps the counts of a dead worker, and drops its searches."""
        self._aggregator.retire(worker_index)
        if self._searches is not None:
            self._searches.drop_all(worker_index)

    def on_workers_failed(self, reason: str) -> None:
        """Ends the service."""
        self._state.fail(reason)

    def _on_open(self, scheduler: BatchScheduler, heads: Heads) -> None:
        if self._lifecycle.searcher is not None:
            self._searches = WorkerSearches(self._lifecycle.searcher)
        for connection in self._supervisor.connections.values():
            self._open_connection(connection, scheduler, heads)

    def _on_measured(self, info: EngineInfo) -> None:
        for connection in self._supervisor.connections.values():
            connection.send(Kind.MEASURED, info.model_dump_json().encode())

    def _open_connection(self, connection: WorkerConnection, scheduler: BatchScheduler, heads: Heads) -> None:
        """Takes a worker's images from now on, and describes the engine to the worker."""
        info = scheduler.engine.info
        queued = min(self._settings.queue_images, QUEUED_SLOTS)
        slot_count = queued + 2 * info.lanes * info.preferred_batch
        connection.open(scheduler, info.config, slot_count)
        embedding = None if self._searches is None else self._searches.embedding
        connection.send(Kind.OPEN, pack_engine(info, heads, slot_count, embedding))

    def _on_state_change(self) -> None:
        if not self._loop.is_closed():  # a build may still report its progress after the end, in its thread
            self._loop.call_soon_threadsafe(self._publish_state)

    def _publish_state(self) -> None:
        for connection in self._supervisor.connections.values():
            self._send_state(connection)
        if self._state.exit_code is not None:
            self._ended.set()

    def _end_error(self) -> ServiceError:
        lost = self._state.current == "lost"
        return EngineLost(self._state.progress) if lost else Draining("the server is shutting down")

    def _send_state(self, connection: WorkerConnection) -> None:
        connection.send(Kind.STATE, pack_state(self._state.current, self._state.progress))

    async def _scrape(self, connection: WorkerConnection, number: int) -> None:
        """Pulls the counters of all workers, and sends the merged metrics over `connection`."""
        started = [other for other in self._supervisor.connections.values() if other.started]
        pulls = {next(self._numbers) & 0xFFFFFFFF: other for other in started}
        for pull, other in pulls.items():
            self._pulls[pull] = self._loop.create_future()
            other.send(Kind.PULL, NUMBER.pack(pull))
        if pulls:
            await asyncio.wait([self._pulls[pull] for pull in pulls], timeout=PULL_TIMEOUT_S)
        if late := [other.worker_index for pull, other in pulls.items() if self._pulls.pop(pull, None)]:
            log.warning("workers %s have not sent their counters within %g s", late, PULL_TIMEOUT_S)
        try:
            text = await asyncio.to_thread(exposition, self._metrics, self._aggregator.total())
        except Exception as error:
            log.error("the metrics cannot be written", exc_info=error)
            text = b""  # tells the worker that there are no metrics
        connection.send(Kind.EXPOSITION, NUMBER.pack(number) + text)


def serve_with_workers(settings: Settings, build_engine: BuildEngine) -> int:
    """Serves until the end; returns the exit code.

    Raises:
        InvalidSettings: nobody can listen on HOST and PORT, or a variable OTEL_… is wrong.
    """

    async def run() -> int:
        return await EngineProcess(settings, build_engine).run()

    factory = uvicorn.Config("", log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=factory) as runner:
        code = runner.run(run())
    return leave(code)
