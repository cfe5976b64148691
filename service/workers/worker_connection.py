"""Where the device process deals with one worker: its images go into the queue, its results back into their slots."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from model.config import MAEConfig
from service.errors import ServiceError
from service.inference.executor import Operation, Row
from service.inference.queue import Keeper, QueuedRequest, QueueEntry
from service.inference.scheduler import BatchScheduler
from service.workers.channel import Channel
from service.workers.messages import DONE, NUMBER, OPERATIONS, PUT, Kind, pack_error
from service.workers.shared_buffers import SharedBuffers
from service.workers.shared_counters import Column, SharedCounters

MessageHandler = Callable[["WorkerConnection", Kind, memoryview], None]


class ServedRequest(QueuedRequest):
    """A worker's request in the queue. Its results do not wait for each other: each goes back by itself."""

    def __init__(
        self, keeper: Keeper, operation: Operation, count: int, deadline: float, *, desk: WorkerConnection, number: int
    ) -> None:
        """Of the request `number` of the worker at `desk`."""
        super().__init__(keeper, operation, count, deadline)
        self.number = number
        self.slots: dict[int, int] = {}
        """By index of the image."""
        self.visible = 0
        self.dropped: list[int] = []
        """Slots of images that will not be taken."""
        self._desk = desk
        self._missing_rows = count

    def take(self) -> QueueEntry:
        """Also makes room for another image in the service."""
        self._desk.left(1)
        return super().take()

    def drop(self) -> None:
        """Also makes room; the slots go back when the worker gives up."""
        self._desk.left(len(self.items))
        self.dropped += [self.slots.pop(item.index) for item in self.items]
        super().drop()

    def settle(self, index: int, row: Row | ServiceError) -> None:
        """Sends the image's result, or only its slot if there is none or nobody waits for it."""
        slot = self.slots.pop(index)
        if self.over or isinstance(row, ServiceError):
            self._desk.send(Kind.RELEASED, NUMBER.pack(slot))
        else:
            self._desk.slots.put_result(slot, self.operation, self.visible, row)
            self._desk.send(Kind.DONE, DONE.pack(slot, self.timing.queue, self.timing.infer))
        if isinstance(row, ServiceError) and not self.over:
            self.fail(row)
        self._missing_rows -= 1
        if not self._missing_rows:
            self._desk.end(self)

    def fail(self, error: ServiceError) -> None:
        """Tells the worker, which will give up."""
        self._desk.send(Kind.FAILED, NUMBER.pack(self.number) + pack_error(error))


class WorkerConnection(Channel):
    """The device process's end of a worker's channel. On the event loop, but for `left`."""

    def __init__(self, worker_index: int, counters: SharedCounters, slots_fd: int, on_message: MessageHandler) -> None:
        """For the worker `worker_index`; `on_message` takes what it says of anything but images and its arrival."""
        super().__init__()
        self.worker_index = worker_index
        self.started = False
        """Whether the worker takes connections."""
        self.messages = 0
        """That it has sent."""
        self._counters = counters
        self._slots_fd = slots_fd
        self._on_message = on_message
        self._batcher: BatchScheduler | None = None
        self._tickets: dict[int, ServedRequest] = {}

    @property
    def is_open(self) -> bool:
        """Whether there is an engine behind it."""
        return self._batcher is not None

    def open(self, batcher: BatchScheduler, config: MAEConfig, count: int) -> None:
        """Images may come from now on, in `count` slots."""
        self.slots = SharedBuffers(self._slots_fd, config, count)
        self._batcher = batcher

    def left(self, count: int) -> None:
        """So many images are not in the queue any more; the queue's lock makes its callers one writer."""
        self._counters.add(self.worker_index, Column.RELEASED, count)

    def end(self, ticket: ServedRequest) -> None:
        """Forgets a ticket, and gives its slots back as far as no batch has them."""
        self._tickets.pop(ticket.number, None)
        ticket.__exit__(None, None, None)
        for slot in ticket.dropped:
            self.send(Kind.RELEASED, NUMBER.pack(slot))
        ticket.dropped = []

    def end_all(self) -> None:
        """The worker is dead: nothing of it enters a batch any more."""
        for ticket in list(self._tickets.values()):
            self.end(ticket)

    def message_received(self, kind: Kind, content: memoryview) -> None:
        """Takes images and leaves the rest to others."""
        self.messages += 1
        if kind is Kind.PUT:
            self._put(*PUT.unpack(content))
        elif kind is Kind.CANCEL:
            if ticket := self._tickets.get(*NUMBER.unpack(content)):
                self.end(ticket)
        elif kind is Kind.HELLO:
            self.started = True
        else:
            self._on_message(self, kind, content)

    def _put(
        self, number: int, slot: int, index: int, count: int, visible: int, operation: int, deadline: float
    ) -> None:
        assert self._batcher is not None, "a worker sends images before it is told of an engine"
        ticket = self._tickets.get(number)
        try:
            if ticket is None:
                kind = partial(ServedRequest, desk=self, number=number)
                admitted = self._batcher.admit(OPERATIONS[operation], count, deadline, kind)
                assert isinstance(admitted, ServedRequest)
                ticket = self._tickets[number] = admitted
                ticket.visible = visible
            ticket.slots[index] = slot  # before a lane can have the image
            ticket.put(index, *self.slots.image(slot, OPERATIONS[operation], visible))
        except ServiceError as error:  # the engine is lost; no lane takes any more, so this is the one writer
            self.left(1)
            self.send(Kind.FAILED, NUMBER.pack(number) + pack_error(error))
            self.send(Kind.RELEASED, NUMBER.pack(slot))
