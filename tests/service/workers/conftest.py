"""A worker's scheduler client and the engine process's connection to it, in one process, over a real channel."""

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from service.inference.batch_scheduler import BatchScheduler
from service.inference.limits import IMAGE, LocalBudget
from service.metrics import Metrics
from service.workers.channel import Channel
from service.workers.messages import Kind
from service.workers.scheduler_client import SchedulerClient
from service.workers.shared_buffers import SharedBuffers
from service.workers.shared_counters import Column, SharedBudget, SharedCounters
from service.workers.worker_connection import WorkerConnection
from tests.support.engines import SMALL, FakeEngine
from tests.support.queueing import Call, admit, ask
from tests.support.waiting import until


class WorkerEnd(Channel):
    """Passes messages about images to the scheduler client."""

    def __init__(self) -> None:
        super().__init__()
        self.client: SchedulerClient | None = None

    def message_received(self, kind: Kind, content: memoryview) -> None:
        assert self.client is not None
        self.client.message_received(kind, content)


@dataclass
class Pair:
    """Both sides of a channel, and what is behind each."""

    client: SchedulerClient
    connection: WorkerConnection
    scheduler: BatchScheduler
    budget: SharedBudget
    worker_metrics: Metrics
    engine_metrics: Metrics

    async def ask(self, *numbers: int, operation: Any = "embed", visible: int = 4, deadline: float = 1e9) -> list[Any]:
        return await ask(self.client, *numbers, operation=operation, visible=visible, deadline=deadline)

    @contextlib.contextmanager
    def admit(self, *numbers: int, deadline: float = 1e9) -> Iterator[Call]:
        """A request whose images, of one grey each, are in the queue already."""
        with admit(self.client, len(numbers), deadline=deadline) as call:
            call.put_all(list(numbers))
            yield call

    until = staticmethod(until)


@contextlib.asynccontextmanager
async def connected(
    engine: FakeEngine, slots: int = 8, queue_images: int = 64, tracer: Any = None
) -> AsyncIterator[Pair]:
    """A worker and the engine process, which must have nothing in the queue in the end."""
    counters, fd = SharedCounters.create(1), os.memfd_create("slots")
    engine_end, worker_end = socket.socketpair()
    engine_metrics, worker_metrics = Metrics(), Metrics()
    scheduler = BatchScheduler(engine, engine_metrics, LocalBudget(), tracer=tracer)
    scheduler.start()
    connection, worker = WorkerConnection(0, counters, fd, lambda connection, kind, content: None), WorkerEnd()
    budget = SharedBudget(counters, 0, Column.ADMITTED, queue_images * IMAGE, Column.RELEASED)
    worker.client = SchedulerClient(worker, SharedBuffers(fd, SMALL, slots), budget, worker_metrics)
    connection.open(scheduler, SMALL, slots)
    await connection.connect(engine_end)
    await worker.connect(worker_end)
    pair = Pair(worker.client, connection, scheduler, budget, worker_metrics, engine_metrics)
    try:
        yield pair
        await pair.until(lambda: not scheduler.waiting and not budget.used)
    finally:
        scheduler.stop(5)
        worker.close()
        connection.close()
        await connection.disconnected.wait()
        os.close(fd)


@pytest.fixture
def fd() -> Any:
    """Shared memory, empty."""
    fd = os.memfd_create("test")
    yield fd
    os.close(fd)
