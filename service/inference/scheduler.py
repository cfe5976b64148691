"""Concurrent requests -> batches -> lanes.

A lane is a thread that takes what waits as soon as it is free; the next batch forms while the lanes are busy, so there
is no timer unless MAX_DELAY_MS asks for one. Only images of the same operation and the same number of visible patches
can share a batch (about the same, where the engine can mix them): they form a group. Whoever was served longest ago (or
came first) goes next, between groups and inside them, one image a turn: so no single image waits behind a request of
many.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from model.engines.base import Engine
from service.errors import EngineLost, QueueFull, ServiceError, TooManyImages
from service.inference.executor import BatchExecutor, Operation, Row
from service.inference.queue import BatchKey, QueuedRequest, QueueEntry, TicketKind
from service.metrics import Metrics

log = logging.getLogger(__name__)
LAST_BATCH_S = 5.0


def require_possible(count: int, limit: int) -> None:
    """Raises TooManyImages for a request that a queue of `limit` images can never hold."""
    if count > limit:
        raise TooManyImages(f"{count} images in one request, but the queue holds {limit}", limit=limit)


def queue_full(admitted: int, count: int, limit: int) -> QueueFull:
    """The refusal of `count` images more than a queue can hold now."""
    return QueueFull(f"{admitted} images are waiting and {count} more are too many", limit=limit)


def copy_of(error: ServiceError) -> ServiceError:
    """Another one that says the same: shared by many requests, one would gather their tracebacks."""
    return type(error)(error.message, **error.details)


class BatchScheduler:
    """The queue and the lanes of one engine."""

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        queue_images: int,
        max_delay_s: float = 0.0,
        on_lost: Callable[[str], None] = log.critical,
    ) -> None:
        """Takes batches up to the engine's preferred size.

        `on_lost` is called on the event loop when the engine is beyond help, with the reason.
        """
        self.engine = engine
        self.lost: str | None = None
        self._metrics = metrics
        self._queue_images = queue_images
        self._max_delay_s = max_delay_s
        self._queue_duration = metrics.stage_duration.labels("queue")
        self._infer_duration = metrics.stage_duration.labels("infer")
        self._on_lost = on_lost
        self._changed = threading.Condition()
        self._groups: dict[BatchKey, dict[QueuedRequest, None]] = {}  # tickets by age of their last turn
        self._sizes: dict[BatchKey, int] = {}
        self._open: set[QueuedRequest] = set()
        self._admitted = 0
        self._busy = 0
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads: list[threading.Thread] = []
        metrics.read_at_scrape(metrics.queue_images, lambda: self.waiting)
        metrics.read_at_scrape(metrics.admitted_images, lambda: self._admitted)
        metrics.read_at_scrape(metrics.lanes_busy, lambda: self._busy)

    @property
    def waiting(self) -> int:
        """Images in the queue, ready for a batch."""
        with self._changed:
            return sum(self._sizes.values())

    def start(self) -> None:
        """Starts one thread a lane; results go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        for lane in range(self.engine.info.lanes):
            thread = threading.Thread(target=self._serve_lane, args=(lane,), name=f"lane-{lane}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def admit(
        self, operation: Operation, count: int, deadline: float, kind: TicketKind = QueuedRequest
    ) -> QueuedRequest:
        """Takes a place for `count` images, before anything is paid for them. `deadline` is of time.monotonic().

        Raises:
            TooManyImages: more than the queue can ever hold.
            QueueFull: more than it can hold now.
            EngineLost: the engine is beyond help.
        """
        require_possible(count, self._queue_images)
        with self._changed:
            if self.lost:
                raise EngineLost(self.lost)
            if self._admitted + count > self._queue_images:
                raise queue_full(self._admitted, count, self._queue_images)
            self._admitted += count
            ticket = kind(self, operation, count, deadline)
            self._open.add(ticket)
        return ticket

    def fail_all(self, error: ServiceError) -> None:
        """Answers everything that was admitted and is not through with `error`. On the event loop."""
        with self._changed:
            tickets = list(self._open)
        for ticket in tickets:
            ticket.fail(copy_of(error))

    def stop(self, seconds: float = LAST_BATCH_S) -> None:
        """Ends the lanes once the queue is empty; a lane that takes longer than `seconds` is left to itself."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                log.error("%s is still running a batch: leaving it", thread.name)

    def put(self, item: QueueEntry) -> None:
        """For `QueuedRequest.put`."""
        ticket = item.ticket
        with self._changed:
            if self.lost:
                raise EngineLost(self.lost)
            if ticket.over:
                return
            group = BatchKey(ticket.operation, self._most(len(item.visible_indices)))
            if ticket.group not in (None, group):
                raise ValueError("the images of one ticket must have the same number of visible patches")
            if not ticket.items:
                ticket.group, ticket.stamp = group, item.since
                self._groups.setdefault(group, {})[ticket] = None
            ticket.items.append(item)
            self._sizes[group] = self._sizes.get(group, 0) + 1
            self._changed.notify()

    def give_up(self, ticket: QueuedRequest) -> None:
        """For the end of a ticket."""
        with self._changed:
            if ticket.over:
                return
            ticket.over = True
            self._open.discard(ticket)
            self._leave_group(ticket)
            if ticket.untaken:
                reason = "abandoned" if time.monotonic() < ticket.deadline else "deadline"
                self._metrics.dropped.labels(reason).inc(ticket.untaken)
            self._admitted -= ticket.untaken
            ticket.untaken = 0

    def _most(self, visible: int) -> int:
        """With how many visible patches an image may share a batch, if it has `visible` itself.

        All images of a batch cost what the one with most patches costs: so it has at most twice as many as any other,
        or they are few.
        """
        if not self.engine.info.mixes:
            return visible
        whole = self.engine.info.config.num_patches
        return next(most for most in (whole // 4, whole // 2, whole) if visible <= most)

    def _leave_group(self, ticket: QueuedRequest) -> None:
        if not ticket.items or ticket.group is None:
            return
        tickets = self._groups[ticket.group]
        del tickets[ticket]
        self._sizes[ticket.group] -= len(ticket.items)
        ticket.drop()
        if not tickets:
            del self._groups[ticket.group], self._sizes[ticket.group]

    def _serve_lane(self, lane: int) -> None:
        runner = BatchExecutor(self.engine, lane, self._metrics)
        try:
            while batch := self._next_batch():
                try:
                    results, seconds = runner.run(batch[0].ticket.operation, batch)
                finally:
                    with self._changed:
                        self._busy -= 1
                self._answer(batch, results, seconds)
        except BaseException as error:  # whatever ends a lane must be seen, or requests would wait for it in silence
            log.critical("lane %d has ended", lane, exc_info=error)
            self._lose(f"lane {lane} has ended: {error or type(error).__name__}")

    def _next_batch(self) -> list[QueueEntry] | None:
        """Waits for work; None when there will be none any more."""
        with self._changed:
            while not self.lost:
                delays = {group: self._delay_left(group) for group in self._groups}
                group = min((group for group, delay in delays.items() if delay <= 0), key=self._age, default=None)
                if group is None:
                    if self._stopping:
                        return None
                    self._changed.wait(min(delays.values(), default=None))
                elif batch := self._take(group):
                    self._busy += 1
                    return batch
            return None

    def _age(self, group: BatchKey) -> float:
        return next(iter(self._groups[group])).stamp

    def _delay_left(self, group: BatchKey) -> float:
        if not self._max_delay_s or self._stopping or self._sizes[group] >= self.engine.info.preferred_batch:
            return 0.0
        oldest = min(ticket.items[0].since for ticket in self._groups[group])
        return oldest + self._max_delay_s - time.monotonic()

    def _take(self, group: BatchKey) -> list[QueueEntry]:
        """Up to the preferred size: one image of each request in turn, beginning with whoever waited longest."""
        now = time.monotonic()
        tickets = self._groups[group]
        turn: deque[QueuedRequest] = deque()
        for ticket in list(tickets):
            if len(turn) == self.engine.info.preferred_batch:
                break
            if now < ticket.deadline:
                turn.append(ticket)
            else:
                self._metrics.dropped.labels("deadline").inc(len(ticket.items))
                self._admitted -= len(ticket.items)
                ticket.untaken -= len(ticket.items)
                self._leave_group(ticket)
        batch: list[QueueEntry] = []
        served: dict[QueuedRequest, None] = {}
        while turn and len(batch) < self.engine.info.preferred_batch:
            ticket = turn.popleft()
            batch.append(ticket.take())
            served[ticket] = None
            if ticket.items:
                turn.append(ticket)
        self._admitted -= len(batch)
        for ticket in served:
            del tickets[ticket]
            if ticket.items:  # to the back: its next turn comes after everybody who waits now
                ticket.stamp = now
                tickets[ticket] = None
        if group in self._sizes:
            self._sizes[group] -= len(batch)
            if not tickets:
                del self._groups[group], self._sizes[group]
        return batch

    def _answer(self, batch: list[QueueEntry], results: list[Row | ServiceError], seconds: float) -> None:
        taken = time.monotonic() - seconds
        for item in batch:
            waited = taken - item.since
            timing = item.ticket.timing
            timing.queue, timing.infer = max(timing.queue, waited), max(timing.infer, seconds)
            self._queue_duration.observe(waited)
            self._infer_duration.observe(seconds)
        self._on_loop(partial(_settle, batch, results))

    def _lose(self, reason: str) -> None:
        """Fails everything that waits and everything to come."""
        with self._changed:
            first = self.lost is None
            self.lost = self.lost or reason
            self._changed.notify_all()
        self._on_loop(partial(self.fail_all, EngineLost(reason)))
        if first:
            self._on_loop(partial(self._on_lost, reason))

    def _on_loop(self, call: Callable[[], object]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call)


def _settle(batch: Sequence[QueueEntry], results: Sequence[Row | ServiceError]) -> None:
    for item, row in zip(batch, results, strict=True):
        item.ticket.settle(item.index, row)
