"""A worker's queue and its desk in one process: all that crosses between the two crosses a real channel."""

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from service.inference.queue import QueuedRequest
from service.inference.scheduler import BatchScheduler
from service.metrics import Metrics
from service.workers.channel import Channel, Kind
from service.workers.scheduler_client import SchedulerClient
from service.workers.shared_buffers import SharedBuffers
from service.workers.shared_counters import Column, SharedBudget, SharedCounters
from service.workers.worker_connection import WorkerConnection
from tests.support.engines import SMALL, FakeEngine


class WorkerEnd(Channel):
    """Hands images' messages to the queue."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: SchedulerClient | None = None

    def received(self, kind: Kind, content: memoryview) -> None:
        assert self.queue is not None
        self.queue.received(kind, content)


@dataclass
class Pair:
    """Both sides."""

    remote: SchedulerClient
    desk: WorkerConnection
    batcher: BatchScheduler
    budget: SharedBudget
    worker_metrics: Metrics
    device_metrics: Metrics

    async def ask(self, *numbers: int, operation: Any = "embed", visible: int = 4, deadline: float = 1e9) -> list[Any]:
        with self.admit(*numbers, operation=operation, visible=visible, deadline=deadline) as ticket:
            return await ticket.rows()

    def admit(self, *numbers: int, operation: Any = "embed", visible: int = 4, deadline: float = 1e9) -> QueuedRequest:
        """A request whose images, of one grey each, are in the queue already."""
        ticket = self.remote.admit(operation, len(numbers), deadline)
        visible_indices = np.arange(visible, dtype=np.int32)
        for index, number in enumerate(numbers):
            rows = 4 if operation == "reconstruct" else visible
            ticket.put(index, np.full((rows, 16 * 16 * 3), number, np.uint8), visible_indices)
        return ticket

    async def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def connected(engine: FakeEngine, slots: int = 8, queue_images: int = 64) -> AsyncIterator[Pair]:
    """A worker and the device process, which must have nothing in the queue in the end."""
    ledger, fd = SharedCounters.create(1), os.memfd_create("slots")
    ours, theirs = socket.socketpair()
    device_metrics, worker_metrics = Metrics(), Metrics()
    batcher = BatchScheduler(engine, device_metrics, sys.maxsize)
    batcher.start()
    desk, link = WorkerConnection(0, ledger, fd, lambda desk, kind, content: None), WorkerEnd()
    budget = SharedBudget(ledger, 0, Column.ADMITTED, queue_images, less=Column.LEFT)
    link.queue = SchedulerClient(link, SharedBuffers(fd, SMALL, slots), budget, worker_metrics)
    desk.open(batcher, SMALL, slots)
    await desk.connect(ours)
    await link.connect(theirs)
    pair = Pair(link.queue, desk, batcher, budget, worker_metrics, device_metrics)
    try:
        yield pair
        await pair.until(lambda: not batcher.waiting and not budget.used)
    finally:
        batcher.stop(5)
        link.close()
        desk.close()
        await desk.gone.wait()
        os.close(fd)


@pytest.fixture
def fd() -> Any:
    """Shared memory, empty."""
    made = os.memfd_create("test")
    yield made
    os.close(made)
