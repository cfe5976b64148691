"""The engine process's side of one worker: its images go into the queue, and their results back into their slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from model.config import MAEConfig
from service.errors import ServiceError
from service.inference.batch_scheduler import BatchScheduler
from service.inference.limits import IMAGE
from service.inference.queue import Operation, QueuedRequest, QueueEntry, Result
from service.workers.channel import Channel
from service.workers.messages import DONE, NUMBER, OPERATIONS, PUT, Kind, pack_error
from service.workers.shared_buffers import SharedBuffers
from service.workers.shared_counters import Column, SharedCounters

MessageHandler = Callable[["WorkerConnection", Kind, memoryview], None]


class ChannelSink:
    """The `ResultSink` of a worker's request. It sends each result as soon as it comes."""

    request: QueuedRequest
    """The request whose results it receives."""

    def __init__(self, connection: WorkerConnection, number: int, operation: Operation, count: int) -> None:
        """For the request `number` of the worker, which has `count` images."""
        self.number = number
        self.slots: dict[int, int] = {}
        """The slot of each image, by its index."""
        self.dropped_slots: list[int] = []
        """The slots of images that enter no batch."""
        self.ended = False
        """Whether the worker has stopped waiting for the request."""
        self._connection = connection
        self._operation = operation
        self._missing = count

    def on_taken(self, entries: Sequence[QueueEntry]) -> None:
        """Makes room in the service's queue."""
        self._connection.count_released(self.request.room(len(entries)))

    def on_dropped(self, entries: Sequence[QueueEntry]) -> None:
        """Makes room in the service's queue; the slots go back when the request ends."""
        self._connection.count_released(self.request.room(len(entries)))
        self.dropped_slots += [self.slots.pop(entry.index) for entry in entries]

    def on_result(self, index: int, result: Result | ServiceError, queue_s: float, infer_s: float) -> None:
        """Sends the image's result, or its slot alone if there is none or nobody waits for it."""
        slot = self.slots.pop(index)
        if self.ended or isinstance(result, ServiceError):
            self._connection.send(Kind.RELEASED, NUMBER.pack(slot))
        else:
            self._connection.slots.write_result(slot, self._operation, result)
            self._connection.send(Kind.DONE, DONE.pack(slot, queue_s, infer_s))
        if isinstance(result, ServiceError) and not self.ended:
            self.on_failed(result)
        self._missing -= 1
        if not self._missing:
            self._connection.end(self)

    def on_failed(self, error: ServiceError) -> None:
        """Tells the worker, which cancels the request."""
        self._connection.send(Kind.FAILED, NUMBER.pack(self.number) + pack_error(error))


class WorkerConnection(Channel):
    """The engine process's end of a worker's channel. Used on the event loop, except `count_released`."""

    def __init__(self, worker_index: int, counters: SharedCounters, slots_fd: int, on_message: MessageHandler) -> None:
        """Not connected yet.

        Args:
            worker_index: says which cells of the counters are the worker's.
            counters: of all workers.
            slots_fd: the memory that is shared with the worker.
            on_message: handles all messages except HELLO and those about images.
        """
        super().__init__()
        self.worker_index = worker_index
        self.started = False
        """Whether the worker accepts connections."""
        self.messages = 0
        """Number of messages that the worker has sent."""
        self._counters = counters
        self._slots_fd = slots_fd
        self._on_message = on_message
        self._slots: SharedBuffers | None = None
        self._scheduler: BatchScheduler | None = None
        self._sinks: dict[int, ChannelSink] = {}

    def open(self, scheduler: BatchScheduler, config: MAEConfig, count: int) -> None:
        """Lets the worker send images from now on, in `count` slots."""
        self._slots = SharedBuffers(self._slots_fd, config, count)
        self._scheduler = scheduler

    @property
    def slots(self) -> SharedBuffers:
        """The memory with the worker's images."""
        assert self._slots is not None, "a worker sends images before it is told of an engine, or after its end"
        return self._slots

    def count_released(self, room: int) -> None:
        """Counts the room of images that have left the queue. The scheduler's lock makes its callers one writer."""
        self._counters.add(self.worker_index, Column.RELEASED, room)

    def end(self, sink: ChannelSink) -> None:
        """Releases a request, and gives the slots back that no batch has."""
        self._sinks.pop(sink.number, None)
        sink.ended = True
        if self._scheduler is not None:
            self._scheduler.release(sink.request)
        for slot in sink.dropped_slots:
            self.send(Kind.RELEASED, NUMBER.pack(slot))
        sink.dropped_slots = []

    def end_all(self) -> None:
        """Releases all requests of a worker that is dead, and its memory: none of its images enters a batch any more.

        A batch that runs keeps the memory until it ends. Without this, all of it would stay until the collector finds
        the cycle in which the connection and its transport refer to each other.
        """
        for sink in list(self._sinks.values()):
            self.end(sink)
        self._slots = None

    def message_received(self, kind: Kind, content: memoryview) -> None:
        """Handles HELLO and the messages about images, and hands the others on."""
        self.messages += 1
        if kind is Kind.PUT:
            self._put(str(content[PUT.size :], "ascii"), *PUT.unpack_from(content))
        elif kind is Kind.CANCEL:
            if sink := self._sinks.get(*NUMBER.unpack(content)):
                self.end(sink)
        elif kind is Kind.HELLO:
            self.started = True
        elif kind is Kind.SAMPLE:
            self._sample(*NUMBER.unpack(content))
        else:
            self._on_message(self, kind, content)

    def _sample(self, slot: int) -> None:
        assert self._scheduler is not None, "a worker sends images before it is told of an engine"
        patches, _ = self.slots.image(slot, "reconstruct", 0)
        self._scheduler.sample(patches.copy())  # a sample may wait long, and a slot is for those who wait for an answer
        self.send(Kind.RELEASED, NUMBER.pack(slot))

    def _put(
        self,
        traceparent: str,
        number: int,
        slot: int,
        index: int,
        count: int,
        passes: int,
        visible: int,
        room: int,
        operation: int,
        deadline: float,
    ) -> None:
        assert self._scheduler is not None, "a worker sends images before it is told of an engine"
        sink = self._sinks.get(number)
        try:
            if sink is None:
                sink = ChannelSink(self, number, OPERATIONS[operation], count)
                shares = (room / IMAGE,)
                sink.request = self._scheduler.admit(
                    OPERATIONS[operation], count, deadline, sink, passes, shares, traceparent
                )
                self._sinks[number] = sink
            sink.slots[index] = slot  # before a lane can have the image
            self._scheduler.put(sink.request, index, *self.slots.image(slot, OPERATIONS[operation], visible))
        except ServiceError as error:  # The engine is lost: no lane takes images, so this is the only writer.
            self.count_released(room)
            self.send(Kind.FAILED, NUMBER.pack(number) + pack_error(error))
            self.send(Kind.RELEASED, NUMBER.pack(slot))
