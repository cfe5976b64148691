"""The queue between requests and lanes: a data structure without threads, clocks or metrics.

Only images with the same `BatchKey` can share a batch. Turns are fair at two levels: the key goes next in which a
request has waited longest for its turn, and inside a key each request gives one image per turn. So a request of one
image never waits behind a request of many: before it come at most as many batches as there were requests before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from model.arrays import Bytes, Floats, Indices
from service.errors import ServiceError
from service.inference.limits import count_units

Operation = Literal["embed", "tokens", "reconstruct"]


class DecoderOutput(NamedTuple):
    """The result of one image for `reconstruct`."""

    pixels: Bytes
    """Predicted pixels, uint8 [N, P]."""
    error: Floats
    """Squared error of each patch, float32 [N]."""


Result = Floats | DecoderOutput
"""The result of one image: float32 [2, D] for `embed`, float32 [K, D] for `tokens`, or a `DecoderOutput`."""


class BatchKey(NamedTuple):
    """The properties that all images of one batch share."""

    operation: Operation
    max_visible: int
    """The exact number of visible patches; an upper bound where the engine supports padding."""


class ResultSink(Protocol):
    """The receiver of a request's results.

    `on_taken` and `on_dropped` are called in any thread, while the scheduler holds its lock. `on_result` and
    `on_failed` are called on the event loop.
    """

    def on_taken(self, entries: Sequence[QueueEntry]) -> None:
        """Images have left the queue for a batch."""

    def on_dropped(self, entries: Sequence[QueueEntry]) -> None:
        """Images have left the queue and enter no batch."""

    def on_result(self, index: int, result: Result | ServiceError, queue_s: float, infer_s: float) -> None:
        """Receives the result of image `index`, with its seconds in the queue and in its batch."""

    def on_failed(self, error: ServiceError) -> None:
        """Receives a failure of the whole request."""


@dataclass(eq=False, slots=True)
class QueuedRequest:
    """A request that was admitted to the queue, with as many images as it was admitted for.

    An image with several masks is that many images to the queue: one *pass* for each mask.
    """

    operation: Operation
    count: int
    """Number of its images, each pass counted."""
    deadline: float
    """The time after which its images enter no batch, in seconds of time.monotonic()."""
    sink: ResultSink
    """The receiver of its results."""
    passes: int = 1
    """Passes of each image: pass p of image i has the index i * passes + p."""
    share: float = 1.0
    """The share of an image that each of its images counts as in the queue."""
    traceparent: str = ""
    """Names the request's span in traces; empty if the request is not traced."""
    unbatched: int = field(init=False)
    """Number of its passes that hold room in the queue: neither in a batch nor dropped."""
    key: BatchKey | None = None
    """The key of its images, set with the first one."""
    released: bool = False
    """Whether nobody waits for its results."""

    def __post_init__(self) -> None:
        """Every image holds room in the queue at first."""
        self.unbatched = self.count

    def room(self, count: int) -> int:
        """What `count` of its images take of the budget of images."""
        return count * count_units(self.share)

    def set_key(self, key: BatchKey) -> None:
        """Sets the key of its images.

        Raises:
            ValueError: an earlier image had another key.
        """
        if self.key not in (None, key):
            raise ValueError("the images of one request must have the same number of visible patches")
        self.key = key


@dataclass(frozen=True, eq=False, slots=True)
class QueueEntry:
    """One image in the queue, or one pass of it."""

    request: QueuedRequest
    index: int
    """Its number within the request, all passes of all images counted."""
    patches: Bytes
    """uint8 [K, P]; all patches, [N, P], for `reconstruct`."""
    visible_indices: Indices
    """int32 [K]."""
    queued_at: float
    """The time when it entered the queue, in seconds of time.monotonic()."""

    @property
    def image(self) -> int:
        """The number of its image within the request."""
        return self.index // self.request.passes


@dataclass(slots=True)
class _Turn:
    """The waiting images of one request."""

    last_turn: float
    """The time when the request last gave an image to a batch; at first, when its oldest image was queued."""
    entries: deque[QueueEntry] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class NextBatch:
    """The images that have left the queue, or the time until a batch is due."""

    entries: Sequence[QueueEntry] = ()
    """The batch; empty if all images that were due are in `expired`, or if none was due."""
    expired: Sequence[QueueEntry] = ()
    """Images that were removed because their deadline has passed."""
    wait_s: float | None = None
    """Seconds until a batch is due: 0 if one was, None if the queue is empty."""


class FairQueue:
    """Queued images by batch key and request. The caller holds a lock around every call."""

    def __init__(self, max_batch_size: int, max_delay_s: float = 0.0) -> None:
        """The queue is empty.

        Args:
            max_batch_size: largest number of images in a batch.
            max_delay_s: time that the oldest image waits for a batch to fill.
        """
        self.max_batch_size = max_batch_size
        self._max_delay_s = max_delay_s
        # The requests of a key stand in the order of their next turn.
        self._turns: dict[BatchKey, dict[QueuedRequest, _Turn]] = {}
        self._sizes: dict[BatchKey, int] = {}

    def __len__(self) -> int:
        """Number of images in the queue."""
        return sum(self._sizes.values())

    def put(self, key: BatchKey, entry: QueueEntry) -> None:
        """Queues an image.

        Raises:
            ValueError: an earlier image of its request had another key.
        """
        entry.request.set_key(key)
        turns = self._turns.setdefault(key, {})
        if entry.request not in turns:
            turns[entry.request] = _Turn(entry.queued_at)
        turns[entry.request].entries.append(entry)
        self._sizes[key] = self._sizes.get(key, 0) + 1

    def remove(self, request: QueuedRequest) -> Sequence[QueueEntry]:
        """Removes the images of a request that are in the queue, and returns them."""
        if request.key is None or request not in (turns := self._turns.get(request.key, {})):
            return ()
        entries = turns.pop(request).entries
        self._shrink(request.key, len(entries))
        return entries

    def count(self, key: BatchKey) -> int:
        """Number of images with this key in the queue."""
        return self._sizes.get(key, 0)

    def next_key(self, now: float, flush: bool = False) -> BatchKey | None:
        """The key of the batch that `next_batch` would take; None if no batch is due."""
        due = [key for key, delay in self._delays(now, flush).items() if delay <= 0]
        return min(due, key=self._last_turn) if due else None

    def next_batch(self, now: float, flush: bool = False, size: int | None = None) -> NextBatch:
        """Removes the next batch from the queue: one image of each request in turn, the longest waiting request first.

        Args:
            now: seconds of time.monotonic().
            flush: batches that are not full are due at once.
            size: largest number of images in this batch; as many as in any batch if None.
        """
        key = self.next_key(now, flush)
        if key is None:
            return NextBatch(wait_s=min(self._delays(now, flush).values(), default=None))
        size = self.max_batch_size if size is None else min(size, self.max_batch_size)
        turns = self._turns[key]
        candidates: deque[QueuedRequest] = deque()
        expired: list[QueueEntry] = []
        for request in list(turns):
            if len(candidates) == size:
                break
            if now < request.deadline:
                candidates.append(request)
            else:
                expired += self.remove(request)
        batch: list[QueueEntry] = []
        served: dict[QueuedRequest, None] = {}
        while candidates and len(batch) < size:
            request = candidates.popleft()
            entries = turns[request].entries
            batch.append(entries.popleft())
            # In the order of the last turns: a request with two images in this batch comes behind the others.
            served.pop(request, None)
            served[request] = None
            if entries:
                candidates.append(request)
        for request in served:
            turn = turns.pop(request)
            if turn.entries:  # The next turn of this request comes after all requests that wait now.
                turn.last_turn = now
                turns[request] = turn
        if batch:
            self._shrink(key, len(batch))
        return NextBatch(batch, expired, wait_s=0.0)

    def _shrink(self, key: BatchKey, count: int) -> None:
        self._sizes[key] -= count
        if not self._sizes[key]:
            del self._turns[key], self._sizes[key]

    def _last_turn(self, key: BatchKey) -> float:
        return next(iter(self._turns[key].values())).last_turn

    def _delays(self, now: float, flush: bool) -> dict[BatchKey, float]:
        return {key: 0.0 if flush else self._delay(key, now) for key in self._turns}

    def _delay(self, key: BatchKey, now: float) -> float:
        if not self._max_delay_s or self._sizes[key] >= self.max_batch_size:
            return 0.0
        oldest = min(turn.entries[0].queued_at for turn in self._turns[key].values())
        return oldest + self._max_delay_s - now
