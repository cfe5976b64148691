"""The queue as a worker sees it: images go into slots, and the device process is told."""

from __future__ import annotations

import itertools
import time
from collections import deque
from dataclasses import dataclass

from service.errors import ServiceError
from service.inference.executor import Operation
from service.inference.limits import Budget
from service.inference.queue import QueuedRequest, QueueEntry
from service.inference.scheduler import copy_of, queue_full, require_possible
from service.metrics import Metrics
from service.workers.channel import Channel
from service.workers.messages import DONE, NUMBER, OPERATIONS, PUT, Kind, unpack_error
from service.workers.shared_buffers import SharedBuffers


@dataclass(slots=True)
class Request:
    """What is known of a ticket beside itself."""

    number: int
    count: int
    visible: int = 0
    sent: int = 0
    answered: int = 0


class SchedulerClient:
    """The scheduler as a worker sees it: the engine process has the queue and the lanes. Used on the event loop."""

    def __init__(self, channel: Channel, slots: SharedBuffers, budget: Budget, metrics: Metrics) -> None:
        """`budget` is QUEUE_IMAGES, of the whole service."""
        self._channel = channel
        self._slots = slots
        self._budget = budget
        self._metrics = metrics
        self._numbers = itertools.count()
        self._requests: dict[QueuedRequest, Request] = {}
        self._tickets: dict[int, QueuedRequest] = {}
        self._free = list(range(slots.count))  # the last one back is the first one out: memory follows the peak
        self._held: dict[int, tuple[QueuedRequest, int, int]] = {}
        """Of each slot that the device process has: ticket, index and number of visible patches."""
        self._waiting: deque[QueueEntry] = deque()
        """Images for which there is no slot yet."""

    def admit(self, operation: Operation, count: int, deadline: float) -> QueuedRequest:
        """As `BatchScheduler.admit`: the bound is that of the whole service, and no message is needed to know it."""
        limit = self._budget.limit
        assert limit is not None
        require_possible(count, limit)
        if not self._budget.take(count):
            raise queue_full(self._budget.used, count, limit)
        ticket = QueuedRequest(self, operation, count, deadline)
        request = Request(next(self._numbers) & 0xFFFFFFFF, count)
        self._requests[ticket], self._tickets[request.number] = request, ticket
        return ticket

    def put(self, item: QueueEntry) -> None:
        """For `QueuedRequest.put`."""
        if item.ticket.over:
            return
        visible, request = len(item.visible_indices), self._requests[item.ticket]
        if request.visible not in (0, visible):
            raise ValueError("the images of one ticket must have the same number of visible patches")
        request.visible = visible
        self._waiting.append(item)
        self._send_waiting()

    def give_up(self, ticket: QueuedRequest) -> None:
        """For the end of a ticket: slots that the device process has come back when it is done with them."""
        if ticket.over:
            return
        ticket.over = True
        request = self._requests.pop(ticket)
        del self._tickets[request.number]
        self._budget.give(request.count - request.sent)
        if not request.sent:
            reason = "abandoned" if time.monotonic() < ticket.deadline else "deadline"
            self._metrics.dropped.labels(reason).inc(request.count)
        elif request.answered < request.count:
            self._channel.send(Kind.CANCEL, NUMBER.pack(request.number))

    def fail_all(self, error: ServiceError) -> None:
        """Answers everything that was admitted and is not through with `error`."""
        for ticket in list(self._requests):
            ticket.fail(copy_of(error))

    def stop(self) -> None:
        """Nothing to end: the lanes are elsewhere."""

    def message_received(self, kind: Kind, content: memoryview) -> None:
        """What the device process says of images: DONE, RELEASED or FAILED."""
        if kind is Kind.FAILED:
            (number,) = NUMBER.unpack_from(content)
            if failed := self._tickets.get(number):
                failed.fail(unpack_error(content[NUMBER.size :]))
            return
        queue = infer = 0.0
        if kind is Kind.DONE:
            slot, queue, infer = DONE.unpack(content)
        else:
            (slot,) = NUMBER.unpack(content)
        ticket, index, visible = self._held.pop(slot)
        if request := self._requests.get(ticket):
            request.answered += 1
            if kind is Kind.DONE:
                ticket.timing.queue, ticket.timing.infer = queue, infer
                ticket.settle(index, self._slots.result(slot, ticket.operation, visible))
        self._free.append(slot)
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting and self._free:
            item = self._waiting.popleft()
            if item.ticket.over:
                continue
            slot, ticket, request = self._free.pop(), item.ticket, self._requests[item.ticket]
            self._slots.put_image(slot, ticket.operation, item.patches, item.visible_indices)
            self._held[slot] = ticket, item.index, request.visible
            request.sent += 1
            operation = OPERATIONS.index(ticket.operation)
            message = (request.number, slot, item.index, request.count, request.visible, operation, ticket.deadline)
            self._channel.send(Kind.PUT, PUT.pack(*message))
