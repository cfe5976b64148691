"""Hands the results of batches to their requests, and records times and spans."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from service.errors import ServiceError
from service.inference.queue import QueueEntry, Result
from service.metrics import Metrics
from service.tracing.images import TracedImage, error_name

if TYPE_CHECKING:
    from service.tracing.spans import Tracer


class BatchResults:
    """The way from the threads of the lanes to the event loop. Any thread may call its methods."""

    def __init__(self, metrics: Metrics, tracer: Tracer | None) -> None:
        """Hands nothing over before `open`; without a tracer, batches are not traced."""
        self._queue_duration = metrics.stage_duration.labels("queue")
        self._infer_duration = metrics.stage_duration.labels("infer")
        self._tracer = tracer
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Hands results to the running event loop from now on."""
        self._loop = asyncio.get_running_loop()

    def call_on_loop(self, call: Callable[[], object]) -> None:
        """Has `call` called on the event loop, unless that has ended."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call)

    def deliver(self, batch: Sequence[QueueEntry], results: list[Result | ServiceError], infer_s: float) -> None:
        """Hands over the result of each image of a batch that has just ended, and has taken `infer_s` seconds."""
        taken_at = time.monotonic() - infer_s
        waits = [taken_at - entry.queued_at for entry in batch]
        for queue_s in waits:
            self._queue_duration.observe(queue_s)
            self._infer_duration.observe(infer_s)
        self.call_on_loop(partial(_send_results, batch, results, waits, infer_s))

    def trace_batch(
        self, lane: int, batch: Sequence[QueueEntry], taken_at: float, outcomes: Sequence[Result | BaseException]
    ) -> None:
        """Records the spans of a batch that has ended, with a result or an error for each image."""
        if self._tracer is not None:
            images = [
                TracedImage(entry.request.traceparent, entry.queued_at, error_name(outcome))
                for entry, outcome in zip(batch, outcomes, strict=True)
            ]
            self._tracer.record_batch(batch[0].request.operation, lane, images, taken_at)

    def trace_dropped(self, entries: Sequence[QueueEntry]) -> None:
        """Records the wait of images that enter no batch."""
        if self._tracer is not None and entries:
            self._tracer.record_dropped([TracedImage(entry.request.traceparent, entry.queued_at) for entry in entries])


def _send_results(
    batch: Sequence[QueueEntry], results: Sequence[Result | ServiceError], waits: Sequence[float], infer_s: float
) -> None:
    for entry, result, queue_s in zip(batch, results, waits, strict=True):
        entry.request.sink.on_result(entry.index, result, queue_s, infer_s)
