"""Helpers for tests of the queue: a started scheduler, requests, and a gate that holds batches up."""

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from typing import Any

import numpy as np

from service.inference.batch_scheduler import BatchScheduler
from service.inference.limits import IMAGE, WHOLE, LocalBudget
from service.inference.pending_results import PendingResults
from service.inference.queue import QueuedRequest
from service.inference.scheduler import Scheduler
from service.metrics import Metrics
from tests.support.engines import FakeEngine
from tests.support.metrics import sample

ALL_FOUR = np.arange(4, dtype=np.int32)


def image(number: int, patches: int = 4) -> np.ndarray:
    return np.full((patches, 16 * 16 * 3), number, dtype=np.uint8)


class Call:
    """A request as a pipeline makes it, without images to decode."""

    def __init__(self, scheduler: Scheduler, request: QueuedRequest, pending: PendingResults) -> None:
        self.request, self.pending = request, pending
        self._scheduler = scheduler

    def put(self, index: int, patches: np.ndarray, visible_indices: np.ndarray) -> None:
        self._scheduler.put(self.request, index, patches, visible_indices)

    def put_all(self, numbers: list[int], visible: int = 4) -> None:
        """Puts an image in one shade of grey for each of `numbers`."""
        for index, number in enumerate(numbers):
            patches = image(number, 4 if self.request.operation == "reconstruct" else visible)
            self.put(index, patches, ALL_FOUR[:visible])

    async def results(self) -> list[Any]:
        return await self.pending.wait()


@contextlib.contextmanager
def admit(
    scheduler: Scheduler,
    count: int,
    operation: Any = "embed",
    deadline: float = math.inf,
    shares: Sequence[float] = WHOLE,
) -> Iterator[Call]:
    """Admits a request, and releases it in the end."""
    pending = PendingResults(count)
    request = scheduler.admit(operation, count, deadline, pending, shares=shares)
    try:
        yield Call(scheduler, request, pending)
    finally:
        scheduler.release(request)
        pending.close()


async def ask(
    scheduler: Scheduler, *numbers: int, visible: int = 4, operation: Any = "embed", deadline: float = math.inf
) -> list[Any]:
    with admit(scheduler, len(numbers), operation, deadline) as call:
        call.put_all(list(numbers), visible)
        return await call.results()


@contextlib.asynccontextmanager
async def run_scheduler(engine: FakeEngine, queue_images: int = 512, **settings: Any) -> AsyncIterator[BatchScheduler]:
    """Runs a scheduler, whose queue must be empty in the end."""
    scheduler = BatchScheduler(engine, Metrics(), LocalBudget(queue_images * IMAGE), **settings)
    scheduler.start()
    try:
        yield scheduler
        assert gauge(scheduler, "mae_queue_images") == 0
        assert reserved_images(scheduler) == 0
    finally:
        scheduler.stop(5)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane-")]


def reserved_images(scheduler: BatchScheduler) -> float:
    """Number of images that have room reserved in the queue; one of which fewer patches are encoded counts as less."""
    return scheduler._images.used / IMAGE


def gauge(scheduler: BatchScheduler, name: str, **labels: str) -> float:
    """The value of a gauge in the metrics exposition."""
    return sample(scheduler._metrics.render(), name, **labels)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))


class Gate:
    """Holds up every batch until it is opened. It serves as the `before` of a `FakeEngine`."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, images: list[int]) -> None:
        self.reached.set()
        assert self.opened.wait(60)

    async def wait_until_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 60)


async def run_ready_tasks() -> None:
    """Lets every task run until it waits for something."""
    for _ in range(5):
        await asyncio.sleep(0)
