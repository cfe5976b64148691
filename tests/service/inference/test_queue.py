"""The queue by itself: pure calls at times that the tests make up."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from service.errors import ServiceError
from service.inference.queue import BatchKey, FairQueue, QueuedRequest, QueueEntry, Result

EMBED, TOKENS = BatchKey("embed", 4), BatchKey("tokens", 4)
FOREVER = float("inf")


class NoSink:
    """Receives nothing here: the queue calls no sink."""

    def taken(self, entries: Sequence[QueueEntry]) -> None:
        raise AssertionError

    def dropped(self, entries: Sequence[QueueEntry]) -> None:
        raise AssertionError

    def result(self, index: int, result: Result | ServiceError, queue_s: float, infer_s: float) -> None:
        raise AssertionError

    def failed(self, error: ServiceError) -> None:
        raise AssertionError


def request(count: int = 1, deadline: float = FOREVER) -> QueuedRequest:
    return QueuedRequest("embed", count, deadline, NoSink())


def put(queue: FairQueue, key: BatchKey, of: QueuedRequest, at: float, count: int = 1, first: int = 0) -> None:
    for index in range(first, first + count):
        queue.put(key, QueueEntry(of, index, np.zeros((4, 3), np.uint8), np.arange(4, dtype=np.int32), at))


def taken(queue: FairQueue, key: BatchKey, now: float = 0.0) -> list[tuple[QueuedRequest, int]]:
    batch, expired = queue.take(key, now)
    assert not expired
    return [(entry.request, entry.index) for entry in batch]


def test_requests_give_one_image_per_turn() -> None:
    queue, many, few = FairQueue(4), request(5), request(2)
    put(queue, EMBED, many, 0.0, 5)
    put(queue, EMBED, few, 1.0, 2)
    assert taken(queue, EMBED, 2.0) == [(many, 0), (few, 0), (many, 1), (few, 1)]
    assert taken(queue, EMBED, 3.0) == [(many, 2), (many, 3), (many, 4)]
    assert len(queue) == 0 and queue.next_key(4.0) == (None, None)


def test_a_served_request_goes_behind_those_that_wait() -> None:
    queue, first, second, third = FairQueue(1), request(3), request(1), request(1)
    put(queue, EMBED, first, 0.0, 3)
    put(queue, EMBED, second, 1.0)
    assert taken(queue, EMBED, 2.0) == [(first, 0)]
    put(queue, EMBED, third, 3.0)
    order = [taken(queue, EMBED, 4.0 + turn)[0][0] for turn in range(4)]
    assert order == [second, first, third, first]


def test_the_key_that_was_served_longest_ago_is_next() -> None:
    queue, ours, theirs = FairQueue(1), request(2), request(2)
    put(queue, EMBED, ours, 0.0, 2)
    put(queue, TOKENS, theirs, 1.0, 2)
    order = []
    for now in (2.0, 3.0, 4.0, 5.0):
        key, delay_s = queue.next_key(now)
        assert key is not None and delay_s is None
        order.append(key)
        taken(queue, key, now)
    assert order == [EMBED, TOKENS, EMBED, TOKENS]


def test_the_delay_counts_from_the_oldest_image() -> None:
    queue, early, late = FairQueue(3, max_delay_s=10.0), request(), request()
    put(queue, EMBED, early, 100.0)
    put(queue, EMBED, late, 106.0)
    assert queue.next_key(107.0) == (None, 3.0), "each newcomer must not put it off again"
    assert queue.next_key(110.0) == (EMBED, None)


def test_a_full_batch_does_not_wait_for_the_delay_nor_for_another_key() -> None:
    queue, lone, full = FairQueue(2, max_delay_s=10.0), request(), request(2)
    put(queue, TOKENS, lone, 100.0)
    put(queue, EMBED, full, 101.0, 2)
    assert queue.next_key(102.0) == (EMBED, None)
    taken(queue, EMBED, 102.0)
    assert queue.next_key(102.0) == (None, 8.0)
    assert queue.next_key(102.0, flush=True) == (TOKENS, None), "at the end nothing waits"


def test_an_image_past_its_deadline_is_returned_apart() -> None:
    queue, late, kept = FairQueue(4), request(2, deadline=5.0), request(1, deadline=50.0)
    put(queue, EMBED, late, 0.0, 2)
    put(queue, EMBED, kept, 1.0)
    batch, expired = queue.take(EMBED, 5.0)
    assert [entry.request for entry in batch] == [kept]
    assert [(entry.request, entry.index) for entry in expired] == [(late, 0), (late, 1)]
    assert len(queue) == 0


def test_a_batch_of_nothing_but_late_images_is_empty() -> None:
    queue, late = FairQueue(4), request(1, deadline=5.0)
    put(queue, EMBED, late, 0.0)
    batch, expired = queue.take(EMBED, 6.0)
    assert batch == [] and len(expired) == 1 and queue.next_key(6.0) == (None, None)


def test_a_removed_request_leaves_the_others() -> None:
    queue, gone, kept = FairQueue(4), request(2), request()
    put(queue, EMBED, gone, 0.0, 2)
    put(queue, EMBED, kept, 0.0)
    assert [entry.index for entry in queue.remove(gone)] == [0, 1]
    assert list(queue.remove(gone)) == [] and list(queue.remove(request())) == []
    assert taken(queue, EMBED) == [(kept, 0)]


def test_the_images_of_one_request_have_one_key_even_after_some_were_taken() -> None:
    queue, mixed = FairQueue(4), request(2)
    put(queue, EMBED, mixed, 0.0)
    taken(queue, EMBED)
    with pytest.raises(ValueError, match="same number of visible patches"):
        put(queue, TOKENS, mixed, 0.0, first=1)


@pytest.mark.parametrize("seed", range(20))
def test_every_image_leaves_the_queue_exactly_once(seed: int) -> None:
    draw = random.Random(seed)
    queue = FairQueue(draw.randint(1, 5), draw.choice([0.0, 3.0]))
    inside: set[tuple[QueuedRequest, int]] = set()
    for step in range(500):
        now, choice = float(step), draw.random()
        if choice < 0.4:
            of = request(draw.randint(1, 9), draw.choice([FOREVER, now + draw.randint(0, 9)]))
            put(queue, draw.choice([EMBED, TOKENS]), of, now, of.count)
            inside |= {(of, index) for index in range(of.count)}
        elif choice < 0.5 and inside:
            of = draw.choice(sorted(inside, key=lambda one: (id(one[0]), one[1])))[0]
            removed = {(entry.request, entry.index) for entry in queue.remove(of)}
            assert removed == {image for image in inside if image[0] is of}
            inside -= removed
        else:
            key, _ = queue.next_key(now, flush=draw.random() < 0.2)
            if key is not None:
                batch, expired = queue.take(key, now)
                left = [(entry.request, entry.index) for entry in [*batch, *expired]]
                assert len(set(left)) == len(left) and inside.issuperset(left)
                assert all(entry.request.deadline > now for entry in batch)
                assert all(entry.request.deadline <= now for entry in expired)
                inside -= set(left)
        assert len(queue) == len(inside)
