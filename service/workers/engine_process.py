"""The process that has the engine, with workers in front of it: what is the whole service's is decided here."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import sys
import threading

import orjson
import uvicorn

from model.engines.base import ServedModel
from service.inference.scheduler import BatchScheduler
from service.server import SIGNALS
from service.service import BuildEngine, Service
from service.settings import Settings
from service.workers.channel import NUMBER, Kind
from service.workers.metrics_merge import CounterAggregator, exposition, unpacked_counters
from service.workers.shared_counters import SharedCounters
from service.workers.supervisor import WorkerSupervisor
from service.workers.worker import budgets_of, images_of, packed_engine
from service.workers.worker_connection import WorkerConnection

log = logging.getLogger(__name__)
BACKLOG = 2048
# How long a scrape waits for the counters of a worker that does not answer; then it goes with those it sent last.
PULL_S = 0.5
# Slots of a worker beyond those of its batches: more images of one worker wait in its own memory.
QUEUED_SLOTS = 512


class EngineService(Service):
    """The service without its routes. QUEUE_IMAGES is kept by the ledger, before an image comes here."""

    def __init__(self, settings: Settings, build_engine: BuildEngine, ledger: SharedCounters) -> None:
        """Sees all that the workers count in `ledger`."""
        super().__init__(settings, build_engine, budgets_of(settings, ledger, 0))
        self._images = images_of(settings, ledger, 0)
        self._batcher: BatchScheduler | None = None

    def open_desk(self, desk: WorkerConnection) -> None:
        """Lets a worker's images in and tells it of the engine, once there is one."""
        if desk.is_open or self._batcher is None or self._pipeline is None:
            return
        info = self._pipeline.info
        slots = min(self.settings.queue_images, QUEUED_SLOTS) + 2 * info.lanes * info.preferred_batch
        desk.open(self._batcher, info.config, slots)
        desk.send(Kind.OPEN, packed_engine(info, self._pipeline.heads, slots))

    def _open(self, served: ServedModel) -> None:
        super()._open(served)
        assert self._pipeline is not None and isinstance(self._pipeline.batcher, BatchScheduler)
        self._batcher = self._pipeline.batcher
        self.metrics.read_at_scrape(self.metrics.admitted_images, lambda: self._images.used)

    def _queue_images(self) -> int:
        return sys.maxsize


class EngineProcess:
    """One run of the service."""

    def __init__(self, settings: Settings, build_engine: BuildEngine) -> None:
        """Nothing is loaded, nobody is there; the port is taken."""
        config = uvicorn.Config("", settings.host, settings.port, log_config=None)
        self._listener = config.bind_socket()  # which also logs where the service listens
        self._listener.setblocking(False)
        self._listener.listen(BACKLOG)
        self._ledger = SharedCounters.create(settings.http_workers)
        self.service = EngineService(settings, build_engine, self._ledger)
        self._tally = CounterAggregator()
        self._numbers = itertools.count(1)
        self._pulls: dict[int, asyncio.Future[None]] = {}
        self._over = asyncio.Event()
        self._scrapes: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._crew = WorkerSupervisor(self._ledger, self._listener, settings.model_dump_json().encode(), self._hear)
        self._crew.on_arrival = self._tell
        self._crew.on_death = self._tally.retire
        self._crew.on_hopeless = self.service.end
        self.service.on_change = self._changed
        self.service.on_exit = self._over.set

    async def run(self) -> None:
        """Until a signal has been drained, or the engine is lost."""
        for number in SIGNALS:
            self._loop.add_signal_handler(number, self._signalled, number)
        self.service.start()
        self._crew.start()
        await self._over.wait()
        await self._crew.leave()
        self._listener.close()
        for scrape in self._scrapes:
            scrape.cancel()
        await self.service.close()
        self._ledger.close()

    def _signalled(self, number: signal.Signals) -> None:
        second = self.service.state == "draining"
        self._over.set() if second and number == signal.SIGINT else self.service.terminate()

    def _changed(self) -> None:
        if not self._loop.is_closed():  # a build that goes on in its thread after the end
            self._loop.call_soon_threadsafe(self._tell_all)

    def _tell_all(self) -> None:
        for desk in self._crew.desks.values():
            self._tell(desk)

    def _tell(self, desk: WorkerConnection) -> None:
        """Says to a worker how the service is."""
        self.service.open_desk(desk)
        desk.send(Kind.STATE, orjson.dumps({"state": self.service.state, "progress": self.service.progress}))

    def _hear(self, desk: WorkerConnection, kind: Kind, content: memoryview) -> None:
        if kind is Kind.COUNTERS:
            self._tally.update(desk.row, unpacked_counters(content[NUMBER.size :]))
            (number,) = NUMBER.unpack_from(content)
            if pull := self._pulls.pop(number, None):
                pull.set_result(None)
        elif kind is Kind.SCRAPE:
            scrape = self._loop.create_task(self._scrape(desk, *NUMBER.unpack(content)))
            self._scrapes.add(scrape)
            scrape.add_done_callback(self._scrapes.discard)

    async def _scrape(self, desk: WorkerConnection, number: int) -> None:
        """Asks every worker what it has counted, and sends `desk` the sum."""
        pulls = {next(self._numbers) & 0xFFFFFFFF: other for other in self._crew.desks.values() if other.arrived}
        for pull, other in pulls.items():
            self._pulls[pull] = self._loop.create_future()
            other.send(Kind.PULL, NUMBER.pack(pull))
        if pulls:
            await asyncio.wait([self._pulls[pull] for pull in pulls], timeout=PULL_S)
        if late := [other.row for pull, other in pulls.items() if self._pulls.pop(pull, None)]:
            log.warning("workers %s have not said within %g s what they have counted", late, PULL_S)
        try:
            text = await asyncio.to_thread(exposition, self.service.metrics, self._tally.total())
        except Exception as error:
            log.error("the metrics cannot be written", exc_info=error)
            text = b""  # which tells the worker
        desk.send(Kind.EXPOSITION, NUMBER.pack(number) + text)


def serve_with_workers(settings: Settings, build_engine: BuildEngine) -> int:
    """Serves until the end; returns the exit code."""

    async def run() -> int:
        device = EngineProcess(settings, build_engine)
        await device.run()
        return device.service.exit_code

    factory = uvicorn.Config("", log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=factory) as runner:
        code = runner.run(run())
    if code or any(thread.daemon for thread in threading.enumerate()):
        logging.shutdown()
        os._exit(code)
    return code
