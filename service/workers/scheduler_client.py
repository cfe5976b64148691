"""The scheduler of a worker: it writes images into slots of shared memory, and announces them to the engine process."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.arrays import Bytes, Indices
from service.errors import ServiceError
from service.inference.limits import WHOLE, Budget, require_possible, reserve_images
from service.inference.queue import BatchKey, Operation, QueuedRequest, QueueEntry, ResultSink
from service.inference.scheduler import copy_error
from service.metrics import Metrics
from service.workers.channel import Channel
from service.workers.messages import DONE, NUMBER, OPERATIONS, PUT, Kind, unpack_error
from service.workers.shared_buffers import SharedBuffers

NO_INDICES: Indices = np.empty(0, np.int32)


@dataclass(slots=True)
class _Progress:
    """How far a request has come."""

    number: int
    """The number of the request in messages."""
    sent: int = 0
    """Number of images that were sent to the engine process."""
    answered: int = 0
    """Number of images whose slots came back."""


class SchedulerClient:
    """The `Scheduler` of a worker. The engine process, which has the queue and the lanes, says when the engine is lost.

    Used on the event loop.
    """

    def __init__(self, channel: Channel, slots: SharedBuffers, images: Budget, metrics: Metrics) -> None:
        """No request is admitted yet.

        Args:
            channel: leads to the engine process.
            slots: the shared memory of this worker.
            images: budget of the whole service's queue, QUEUE_IMAGES.
            metrics: of this worker.
        """
        self._channel = channel
        self._slots = slots
        self._images = images
        self._metrics = metrics
        self._numbers = itertools.count()
        self._progress: dict[QueuedRequest, _Progress] = {}
        self._requests: dict[int, QueuedRequest] = {}
        self._free = list(range(slots.count))  # The slot that came back last is used first: memory follows the peak.
        self._sent: dict[int, QueueEntry] = {}
        """The images that the engine process has, by slot."""
        self._waiting: deque[QueueEntry] = deque()
        """The images that wait for a free slot."""
        self._samples: set[int] = set()
        """The slots of samples that the engine process has not copied yet."""

    def admit(
        self,
        operation: Operation,
        count: int,
        deadline: float,
        sink: ResultSink,
        passes: int = 1,
        shares: Sequence[float] = WHOLE,
        traceparent: str = "",
    ) -> QueuedRequest:
        """See `Scheduler.admit`. The room is that of the whole service, and no message is needed to reserve it."""
        require_possible(self._images, count, passes)
        share = reserve_images(self._images, count, shares)
        request = QueuedRequest(operation, count, deadline, sink, passes, share, traceparent)
        number = next(self._numbers) & 0xFFFFFFFF
        self._progress[request], self._requests[number] = _Progress(number), request
        return request

    def put(self, request: QueuedRequest, index: int, patches: Bytes, visible_indices: Indices) -> None:
        """See `Scheduler.put`."""
        if request.released:
            return
        request.set_key(BatchKey(request.operation, len(visible_indices)))
        self._waiting.append(QueueEntry(request, index, patches, visible_indices, time.monotonic()))
        self._send_waiting()

    def release(self, request: QueuedRequest) -> None:
        """See `Scheduler.release`. The engine process gives slots back when it is done with them."""
        if request.released:
            return
        request.released = True
        progress = self._progress.pop(request)
        del self._requests[progress.number]
        self._images.give(request.room(request.count - progress.sent))
        if not progress.sent:
            reason = "abandoned" if time.monotonic() < request.deadline else "deadline"
            self._metrics.dropped.labels(reason).inc(request.count)
        elif progress.answered < request.count:
            self._channel.send(Kind.CANCEL, NUMBER.pack(progress.number))

    def sample(self, patches: Bytes) -> None:
        """See `Scheduler.sample`. At least half of the slots stay free for requests."""
        if len(self._free) <= self._slots.count // 2:
            self._metrics.drift_samples.labels("dropped").inc()
            return
        slot = self._free.pop()
        self._samples.add(slot)
        self._slots.write_image(slot, "reconstruct", patches, NO_INDICES)
        self._channel.send(Kind.SAMPLE, NUMBER.pack(slot))

    def fail_all(self, error: ServiceError) -> None:
        """See `Scheduler.fail_all`."""
        for request in list(self._progress):
            request.sink.on_failed(copy_error(error))

    def stop(self) -> None:
        """Does nothing: the lanes are in the engine process."""

    def message_received(self, kind: Kind, content: memoryview) -> None:
        """Handles the engine process's messages about images: DONE, RELEASED or FAILED."""
        if kind is Kind.FAILED:
            (number,) = NUMBER.unpack_from(content)
            if failed := self._requests.get(number):
                failed.sink.on_failed(unpack_error(content[NUMBER.size :]))
            return
        queue_s = infer_s = 0.0
        if kind is Kind.DONE:
            slot, queue_s, infer_s = DONE.unpack(content)
        else:
            (slot,) = NUMBER.unpack(content)
        if slot in self._samples:
            self._samples.remove(slot)
        else:
            self._receive(slot, self._sent.pop(slot), kind, queue_s, infer_s)
        self._free.append(slot)
        self._send_waiting()

    def _receive(self, slot: int, entry: QueueEntry, kind: Kind, queue_s: float, infer_s: float) -> None:
        """Counts an image as answered, and hands its result on if there is one."""
        request = entry.request
        if progress := self._progress.get(request):
            progress.answered += 1
            if kind is Kind.DONE:
                result = self._slots.read_result(slot, request.operation, len(entry.visible_indices))
                request.sink.on_result(entry.index, result, queue_s, infer_s)

    def _send_waiting(self) -> None:
        """Sends images as far as there are free slots."""
        while self._waiting and self._free:
            entry = self._waiting.popleft()
            request, visible = entry.request, len(entry.visible_indices)
            if request.released:
                continue
            slot, progress = self._free.pop(), self._progress[request]
            self._slots.write_image(slot, request.operation, entry.patches, entry.visible_indices)
            self._sent[slot] = entry
            progress.sent += 1
            operation = OPERATIONS.index(request.operation)
            counts = request.count, request.passes, visible, request.room(1)
            message = (progress.number, slot, entry.index, *counts, operation, request.deadline)
            self._channel.send(Kind.PUT, PUT.pack(*message) + request.traceparent.encode("ascii"))
