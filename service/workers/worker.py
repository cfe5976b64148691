"""The service in a worker, and its connection to the engine process."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from concurrent.futures import Future
from typing import TYPE_CHECKING

from model.engines.base import EngineInfo
from service.errors import Draining, ServiceError
from service.inference.pipeline import Pipeline
from service.inference.served_name import apply_served_name
from service.lifecycle.background import BackgroundTasks
from service.server import exit_now
from service.service import Service
from service.settings import Settings
from service.workers.channel import Channel
from service.workers.messages import NUMBER, Kind, unpack_engine, unpack_state
from service.workers.metrics_merge import pack_counters
from service.workers.scheduler_client import SchedulerClient
from service.workers.search_client import SearchClient
from service.workers.shared_buffers import SharedBuffers
from service.workers.shared_counters import SharedCounters, shared_budgets

if TYPE_CHECKING:
    from service.tracing.spans import Tracer

log = logging.getLogger(__name__)
# How often a worker sends its counters: a worker that is killed loses the counts since then. A scrape asks for them.
PUSH_S = 0.25
SCRAPE_TIMEOUT_S = 10.0


class EngineConnection(Channel):
    """A worker's end of its channel to the engine process."""

    def __init__(self, service: WorkerService) -> None:
        """Passes messages to `service`."""
        super().__init__()
        self._service = service

    def message_received(self, kind: Kind, content: memoryview) -> None:
        """Passes the message to the service."""
        self._service.on_message(kind, content)

    def connection_lost(self, error: Exception | None) -> None:
        """Ends the process at once, unless it was told to end: without the engine process it cannot serve requests."""
        super().connection_lost(error)
        if not self.closed and self._service.exit_code != 0:
            log.critical("the engine process has gone: ending")
            exit_now(1)


class WorkerService(Service):
    """The service in a worker. The engine process tells it its state and its engine."""

    def __init__(
        self,
        settings: Settings,
        channel: socket.socket,
        counters: SharedCounters,
        worker_index: int,
        slots_fd: int,
        tracer: Tracer | None = None,
    ) -> None:
        """Not connected yet.

        Args:
            settings: of the service.
            channel: the socket to the engine process.
            counters: of all workers.
            worker_index: says which of the cells are this worker's.
            slots_fd: the memory that this worker shares with the engine process.
            tracer: records the requests; None: they are not traced.
        """
        super().__init__(settings, shared_budgets(settings, counters, worker_index), tracer)
        self._channel = channel
        self._slots_fd = slots_fd
        self._scheduler: SchedulerClient | None = None
        self._search_client: SearchClient | None = None
        self._tasks = BackgroundTasks(self._state.fail)
        self._scrapes: dict[int, Future[bytes]] = {}
        self._numbers = itertools.count()
        self.state_known = asyncio.Event()
        """Set when the engine process has told this worker the state of the service."""
        self._pushed = b""
        """The counters as they were last sent to the engine process."""

    def start(self) -> None:
        """Begins to listen to the engine process."""
        self._loop = asyncio.get_running_loop()
        self._connection = EngineConnection(self)
        self._tasks.start(self._push_counters())

    def announce_start(self) -> None:
        """Tells the engine process that this worker accepts connections."""
        self._connection.send(Kind.HELLO)

    def exposition(self) -> bytes:
        """The metrics of the whole service, which the engine process merges. This blocks: call it in a thread.

        Raises:
            ServiceError: the engine process could not write the metrics, and has logged the reason.
            TimeoutError: the engine process does not answer.
        """
        number, future = next(self._numbers) & 0xFFFFFFFF, Future[bytes]()
        self._loop.call_soon_threadsafe(self._request_scrape, number, future)
        try:
            text = future.result(SCRAPE_TIMEOUT_S)
        finally:
            self._loop.call_soon_threadsafe(self._scrapes.pop, number, None)
        if not text:
            raise ServiceError("the metrics cannot be written")
        return text

    def want_memory(self) -> None:
        """Asks the other workers."""
        self._connection.send(Kind.MEMORY_WANTED)

    def on_message(self, kind: Kind, content: memoryview) -> None:
        """Handles a message of the engine process; those about images are tested first, because the others are rare."""
        if kind in (Kind.DONE, Kind.RELEASED, Kind.FAILED):
            assert self._scheduler is not None
            self._scheduler.message_received(kind, content)
        elif kind in (Kind.FOUND, Kind.SEARCH_FAILED):
            assert self._search_client is not None
            self._search_client.message_received(kind, content)
        elif kind is Kind.OPEN:
            self._open(bytes(content))
        elif kind is Kind.MEASURED:
            if self._pipeline is not None:  # or else OPEN has the same description
                info = EngineInfo.model_validate_json(bytes(content))
                self._pipeline.info = apply_served_name(info, self.settings.served_name)
        elif kind is Kind.STATE:
            state, progress = unpack_state(content)
            self._state.change(state, progress)
            self.state_known.set()
        elif kind is Kind.PULL:
            self._connection.send(Kind.COUNTERS, content.tobytes() + pack_counters(self.metrics))
        elif kind is Kind.EXPOSITION:
            if future := self._scrapes.get(*NUMBER.unpack_from(content)):
                future.set_result(bytes(content[NUMBER.size :]))
        elif kind is Kind.MEMORY_WANTED:
            self.on_memory_wanted()
        elif kind is Kind.EXIT:
            if self._scheduler is not None:
                self._scheduler.fail_all(Draining.out_of_time())
            self._state.exit(0)

    async def close(self) -> None:
        """Sends the last counters, and closes the connection."""
        self._tasks.cancel()
        if self._pipeline is not None:
            self._pipeline.close()
        self.metrics.close()
        await self._close_tracer()
        self._push_if_changed()
        await asyncio.sleep(0)  # the channel writes at the end of a turn
        self._connection.close()

    def _open(self, data: bytes) -> None:
        """Takes requests from now on, for the engine that the engine process has loaded."""
        s = self.settings
        info, heads, slot_count, embedding = unpack_engine(data)
        info = apply_served_name(info, s.served_name)
        slots = SharedBuffers(self._slots_fd, info.config, slot_count)
        threads = -(-s.decode_threads // s.http_workers)
        self._scheduler = SchedulerClient(self._connection, slots, self.budgets.images, self.metrics)
        self._search_client = None if embedding is None else SearchClient(self._connection, embedding)
        self._pipeline = Pipeline(
            info,
            heads,
            self._image_decoder(info),
            self._scheduler,
            self.metrics,
            threads,
            s.drift_sample,
            self._result_cache(),
            self._search_client,
        )

    def _request_scrape(self, number: int, future: Future[bytes]) -> None:
        self._scrapes[number] = future
        self._connection.send(Kind.SCRAPE, NUMBER.pack(number))

    async def _push_counters(self) -> None:
        """Connects, and sends the counters whenever they have changed."""
        await self._connection.connect(self._channel)
        while True:
            self._push_if_changed()
            await asyncio.sleep(PUSH_S)

    def _push_if_changed(self) -> None:
        counters = pack_counters(self.metrics)
        if counters != self._pushed:
            self._pushed = counters
            self._connection.send(Kind.COUNTERS, NUMBER.pack(0) + counters)
