"""Any schedule of images: the queue is fair in the ways that its documentation promises."""

from collections import defaultdict
from itertools import combinations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from service.inference.queue import BatchKey, FairQueue, QueuedRequest, QueueEntry
from tests.service.inference.test_queue import FOREVER, request

KEYS = [BatchKey("embed", 4), BatchKey("reconstruct", 2)]
PATCHES, INDICES = np.zeros((4, 3), np.uint8), np.arange(4, dtype=np.int32)


class QueueMachine(RuleBasedStateMachine):
    """Requests come with images, get more, leave, and are served; the oracle is a list of what waits.

    Every step has a time of its own, as on a clock of nanoseconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.keys: dict[QueuedRequest, BatchKey] = {}
        """The key of each request that has images in the queue."""
        self.waiting: dict[QueuedRequest, list[QueueEntry]] = {}
        self.served: dict[QueuedRequest, int] = defaultdict(int)
        """Images that each request in `keys` has given to batches since it waits."""
        self.starts: dict[tuple[QueuedRequest, QueuedRequest], int] = {}
        """How many images more than the second the first of two requests of a key had given when both waited first."""
        self.ahead: dict[QueuedRequest, int] = {}
        """An upper bound on the batches before the next image of a request."""

    @initialize(batch=st.integers(1, 6), delay=st.sampled_from([0.0, 0.0, 3.0, 20.0]))
    def start(self, batch: int, delay: float) -> None:
        self.batch, self.delay = batch, delay
        self.queue = FairQueue(batch, delay)

    @rule(key=st.sampled_from(KEYS), count=st.integers(1, 8), patience=st.sampled_from([FOREVER, FOREVER, 2.0, 9.0]))
    def arrive(self, key: BatchKey, count: int, patience: float) -> None:
        self.now += 1
        self._put(request(99, self.now + patience), key, count)

    @rule(key=st.sampled_from(KEYS), count=st.integers(4, 12), requests=st.integers(2, 4))
    def crowd(self, key: BatchKey, count: int, requests: int) -> None:
        """Several requests wait for several batches."""
        for _ in range(requests):
            self.arrive(key, count, FOREVER)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), count=st.integers(1, 3))
    def add(self, data: st.DataObject, count: int) -> None:
        """More images of a request are decoded."""
        self.now += 1
        of = data.draw(st.sampled_from(list(self.waiting)))
        self._put(of, self.keys[of], count)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        of = data.draw(st.sampled_from(list(self.waiting)))
        assert list(self.queue.remove(of)) == self.waiting[of] and not self.queue.remove(of)
        self._forget(of)

    @rule(flush=st.booleans(), size=st.none() | st.integers(1, 6))
    def serve(self, flush: bool, size: int | None) -> None:
        """A lane takes a batch, of a size that was planned or as large as any."""
        self.now += 1
        due = self._due(flush)
        key = self.queue.next_key(self.now, flush)
        assert (key is None) == (not due) and (key is None or key in due)
        batch = self.queue.next_batch(self.now, flush, size)
        size = self.batch if size is None else min(size, self.batch)
        if not due:
            assert not batch.entries and not batch.expired
            first = min((self._due_at(key) for key in self._by_key()), default=None)
            assert batch.wait_s == (None if first is None else first - self.now)
            return
        left = [*batch.entries, *batch.expired]
        assert left and batch.wait_s == 0 and len(batch.entries) <= size
        assert len({self.keys[entry.request] for entry in left}) == 1, "one key in a batch"
        assert key == self.keys[left[0].request], "the key that was announced"
        self._require_bounded_wait(key, due)
        for entry in batch.expired:
            assert entry.request.deadline <= self.now
            self._take(entry)
        for entry in batch.entries:
            assert self.now < entry.request.deadline
            self._take(entry)
            self.served[entry.request] += 1
        self._require_equal_turns()
        on_time = [of for of in self.waiting if self.keys[of] == key and self.now < of.deadline]
        assert len(batch.entries) == size or not on_time, "no place stays empty while an image could take it"
        for of in {entry.request for entry in batch.entries} & self.waiting.keys():
            self.ahead[of] = len(self.waiting) - 1
        for of in [of for of in self.keys if of not in self.waiting]:
            self._forget(of)
        by_key = self._by_key()
        assert [self.queue.count(key) for key in KEYS] == [len(by_key[key]) for key in KEYS]
        assert len(self.queue) == sum(map(len, self.waiting.values()))

    def _put(self, of: QueuedRequest, key: BatchKey, count: int) -> None:
        first = sum(entry.request is of for entry in self.waiting.get(of, [])) + self.served[of] + 100 * int(self.now)
        for index in range(first, first + count):
            entry = QueueEntry(of, index, PATCHES, INDICES, self.now)
            self.queue.put(key, entry)
            self.waiting.setdefault(of, []).append(entry)
        if of not in self.keys:
            self.ahead[of] = len(self.keys)
            for other in [other for other in self.keys if self.keys[other] == key]:
                self.starts[other, of] = self.served[other]
            self.keys[of] = key

    def _take(self, entry: QueueEntry) -> None:
        assert self.waiting[entry.request].pop(0) is entry, "the images of a request keep their order"
        if not self.waiting[entry.request]:
            del self.waiting[entry.request]

    def _require_equal_turns(self) -> None:
        """Of two requests of a key that both wait, neither gets two turns while the other one gets none."""
        for pair in combinations(self.waiting, 2):
            for one, other in (pair, pair[::-1]):
                if (one, other) in self.starts:
                    assert abs(self.served[one] - self.served[other] - self.starts[one, other]) <= 1

    def _require_bounded_wait(self, key: BatchKey, due: set[BatchKey]) -> None:
        """No request that is due waits for more batches than there were requests when its wait began."""
        for of in self.waiting:
            if self.keys[of] in due and self.delay == 0:
                assert self.ahead[of] >= 0
                self.ahead[of] -= 1

    def _forget(self, of: QueuedRequest) -> None:
        self.waiting.pop(of, None)
        del self.keys[of], self.ahead[of]
        self.served.pop(of, None)
        self.starts = {pair: start for pair, start in self.starts.items() if of not in pair}

    def _by_key(self) -> dict[BatchKey, list[QueueEntry]]:
        by_key: dict[BatchKey, list[QueueEntry]] = defaultdict(list)
        for of, entries in self.waiting.items():
            by_key[self.keys[of]] += entries
        return by_key

    def _due(self, flush: bool) -> set[BatchKey]:
        return {key for key in self._by_key() if flush or self._due_at(key) <= self.now}

    def _due_at(self, key: BatchKey) -> float:
        entries = self._by_key()[key]
        is_full = len(entries) >= self.batch
        return self.now if is_full else min(entry.queued_at for entry in entries) + self.delay


def test_any_schedule() -> None:
    run_state_machine_as_test(QueueMachine, settings=settings(max_examples=2 * settings.default.max_examples))
