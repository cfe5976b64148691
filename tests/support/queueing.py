"""What tests of the queue have in common: a started batcher, requests, and a gate that holds batches up."""

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import numpy as np

from service.inference.queue import QueuedRequest
from service.inference.scheduler import BatchScheduler
from service.metrics import Metrics
from tests.support.engines import FakeEngine
from tests.support.metrics import sample

ALL_FOUR = np.arange(4, dtype=np.int32)


def image(number: int, patches: int = 4) -> np.ndarray:
    return np.full((patches, 16 * 16 * 3), number, dtype=np.uint8)


def put(ticket: QueuedRequest, numbers: list[int], visible: int = 4) -> None:
    for index, number in enumerate(numbers):
        ticket.put(index, image(number, visible if ticket.operation != "reconstruct" else 4), ALL_FOUR[:visible])


async def ask(
    batcher: BatchScheduler, *numbers: int, visible: int = 4, operation: Any = "embed", deadline: float = math.inf
) -> list[Any]:
    with batcher.admit(operation, len(numbers), deadline) as ticket:
        put(ticket, list(numbers), visible)
        return await ticket.rows()


@contextlib.asynccontextmanager
async def serving(engine: FakeEngine, queue_images: int = 512, **settings: Any) -> AsyncIterator[BatchScheduler]:
    """A started batcher, which must be empty in the end."""
    batcher = BatchScheduler(engine, Metrics(), queue_images, **settings)
    batcher.start()
    try:
        yield batcher
        assert gauge(batcher, "mae_queue_images") == 0
        assert gauge(batcher, "mae_admitted_images") == 0
    finally:
        batcher.stop(5)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane-")]


def gauge(batcher: BatchScheduler, name: str, **labels: str) -> float:
    """As Prometheus would see it."""
    return sample(batcher._metrics.render(), name, **labels)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 30))


class Gate:
    """Holds every batch up until it is opened; `before` of an engine."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, images: list[int]) -> None:
        self.reached.set()
        assert self.opened.wait(10)

    async def wait_until_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 10)


async def settled() -> None:
    """Lets every task run until it waits for something."""
    for _ in range(5):
        await asyncio.sleep(0)
