"""A worker's side: the service as its routes know it, with the engine in another process."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
from concurrent.futures import Future

import orjson
import safetensors.numpy

from model.checkpoints.heads import POOL_INDEX, Head, Heads, Whitening
from model.engines.base import EngineInfo
from service.errors import ServiceError
from service.inference.image_decoder import ImageDecoder
from service.inference.limits import Budgets
from service.inference.pipeline import Pipeline
from service.service import Service
from service.settings import Settings
from service.workers.channel import NUMBER, Channel, Kind
from service.workers.metrics_merge import packed_counters
from service.workers.scheduler_client import SchedulerClient
from service.workers.shared_buffers import SharedBuffers
from service.workers.shared_counters import Column, SharedBudget, SharedCounters

log = logging.getLogger(__name__)
# How much of what a worker has counted can be lost if it is killed; a scrape asks for it at once.
PUSH_S = 0.25
SCRAPE_S = 10.0


def budgets_of(settings: Settings, ledger: SharedCounters, row: int) -> Budgets:
    """What the worker of `row` shares with the others."""
    return Budgets(
        SharedBudget(ledger, row, Column.BYTES, settings.max_inflight_bytes),
        SharedBudget(ledger, row, Column.REQUESTS),
    )


def images_of(settings: Settings, ledger: SharedCounters, row: int) -> SharedBudget:
    """The queue's room, as the worker of `row` sees it."""
    return SharedBudget(ledger, row, Column.ADMITTED, settings.queue_images, less=Column.LEFT)


def packed_engine(info: EngineInfo, heads: Heads, slots: int) -> bytes:
    """What a worker must know of an engine."""
    facts = orjson.dumps({"slots": slots, "info": info.model_dump(mode="json")})
    return NUMBER.pack(len(facts)) + facts + safetensors.numpy.save(heads.arrays())


def unpacked_engine(data: bytes) -> tuple[EngineInfo, Heads, int]:
    """What `packed_engine` packed."""
    (length,) = NUMBER.unpack_from(data)
    facts = orjson.loads(data[NUMBER.size : NUMBER.size + length])
    arrays = safetensors.numpy.load(data[NUMBER.size + length :])
    info = EngineInfo.model_validate(facts["info"])
    head = None if info.head is None else Head(info.head, arrays["head.weight"], arrays["head.bias"])
    whitening = {
        pool: Whitening(arrays[f"whitening.{pool}.centre"], arrays[f"whitening.{pool}.matrix"])
        for pool in POOL_INDEX
        if f"whitening.{pool}.centre" in arrays
    }
    return info, Heads(head, whitening), facts["slots"]


class EngineConnection(Channel):
    """A worker's end of its channel."""

    def __init__(self, service: WorkerService) -> None:
        """For the service of this process."""
        super().__init__()
        self._service = service

    def received(self, kind: Kind, content: memoryview) -> None:
        """Images first: the rest is rare."""
        self._service.hear(kind, content)

    def connection_lost(self, error: Exception | None) -> None:
        """Without the device process there is nothing to serve: ends at once, and whoever waits sees a reset."""
        super().connection_lost(error)
        if not self.hung_up and not self._service.leaving:
            log.critical("the device process has gone: ending")
            logging.shutdown()
            os._exit(1)


class WorkerService(Service):
    """What the routes of a worker work with. Its state is what the device process says."""

    def __init__(self, settings: Settings, end: socket.socket, ledger: SharedCounters, row: int, slots_fd: int) -> None:
        """Speaks to the device process over `end`."""
        super().__init__(settings, budgets=budgets_of(settings, ledger, row))
        self.leaving = False
        """Whether the device process has said that it is over."""
        self._end_of_channel = end
        self._images = images_of(settings, ledger, row)
        self._slots_fd = slots_fd
        self._batcher: SchedulerClient | None = None
        self._scrapes: dict[int, Future[bytes]] = {}
        self._numbers = itertools.count()
        self._sent = b""

    def start(self) -> None:
        """Begins to listen to the device process."""
        self._loop = asyncio.get_running_loop()
        self._link = EngineConnection(self)
        self._begin(self._push())

    def say_hello(self) -> None:
        """Connections are taken."""
        self._link.send(Kind.HELLO)

    def exposition(self) -> bytes:
        """The metrics of the whole service.

        Raises:
            ServiceError: the device process could not write them, and has logged why.
            TimeoutError: it does not answer.
        """
        number, future = next(self._numbers) & 0xFFFFFFFF, Future[bytes]()
        self._loop.call_soon_threadsafe(self._scrape, number, future)
        try:
            text = future.result(SCRAPE_S)
        finally:
            self._loop.call_soon_threadsafe(self._scrapes.pop, number, None)
        if not text:
            raise ServiceError("the metrics cannot be written")
        return text

    def hear(self, kind: Kind, content: memoryview) -> None:
        """Does as the device process says."""
        if kind in (Kind.DONE, Kind.RELEASED, Kind.FAILED):
            assert self._batcher is not None
            self._batcher.received(kind, content)
        elif kind is Kind.OPEN:
            self._take_engine(bytes(content))
        elif kind is Kind.STATE:
            self._become(**orjson.loads(content))
        elif kind is Kind.PULL:
            self._link.send(Kind.COUNTERS, content.tobytes() + packed_counters(self.metrics))
        elif kind is Kind.EXPOSITION:
            if future := self._scrapes.get(*NUMBER.unpack_from(content)):
                future.set_result(bytes(content[NUMBER.size :]))
        elif kind is Kind.EXIT:
            self.leaving = True
            self.cut_off()
            self.on_exit()

    async def close(self) -> None:
        """Also tells what was counted last."""
        await super().close()
        self._push_now()
        await asyncio.sleep(0)  # the channel writes at the end of a turn
        self._link.close()

    def _take_engine(self, data: bytes) -> None:
        s = self.settings
        info, heads, count = unpacked_engine(data)
        threads = -(-s.decode_threads // s.http_workers)
        decoder = ImageDecoder(info.config, info.preprocessing, s.max_pixels, threads)
        self._batcher = SchedulerClient(
            self._link, SharedBuffers(self._slots_fd, info.config, count), self._images, self.metrics
        )
        self._pipeline = Pipeline(info, heads, decoder, self._batcher, self.metrics)

    def _scrape(self, number: int, future: Future[bytes]) -> None:
        self._scrapes[number] = future
        self._link.send(Kind.SCRAPE, NUMBER.pack(number))

    async def _push(self) -> None:
        await self._link.connect(self._end_of_channel)
        while True:
            self._push_now()
            await asyncio.sleep(PUSH_S)

    def _push_now(self) -> None:
        counters = packed_counters(self.metrics)
        if counters != self._sent:
            self._sent = counters
            self._link.send(Kind.COUNTERS, NUMBER.pack(0) + counters)
