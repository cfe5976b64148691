"""A worker's queue and its desk in one process: all that crosses between the two crosses a real channel."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.inference.limits import LocalBudget
from service.inference.scheduler import BatchScheduler
from service.metrics import Metrics
from service.workers.channel import Channel, Kind
from service.workers.scheduler_client import SchedulerClient
from service.workers.shared_buffers import SharedBuffers
from service.workers.shared_counters import Column, SharedBudget, SharedCounters
from service.workers.worker_connection import WorkerConnection
from tests.support.engines import SMALL, FakeEngine
from tests.support.queueing import Call, admitted, ask


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
        return await ask(self.remote, *numbers, operation=operation, visible=visible, deadline=deadline)

    @contextlib.contextmanager
    def admit(self, *numbers: int, deadline: float = 1e9) -> Iterator[Call]:
        """A request whose images, of one grey each, are in the queue already."""
        with admitted(self.remote, len(numbers), deadline=deadline) as call:
            call.put_all(list(numbers))
            yield call

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
    batcher = BatchScheduler(engine, device_metrics, LocalBudget())
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


def sample(text: bytes, name: str, **labels: str) -> float:
    """The sum of a sample in an exposition, as Prometheus would read it."""
    return sum(
        found.value
        for family in text_string_to_metric_families(text.decode())
        for found in family.samples
        if found.name == name and labels.items() <= found.labels.items()
    )


@pytest.fixture
def fd() -> Any:
    """Shared memory, empty."""
    made = os.memfd_create("test")
    yield made
    os.close(made)
