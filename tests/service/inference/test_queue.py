"""The queue by itself: pure calls at times that the tests make up."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from service.errors import ServiceError
from service.inference.queue import BatchKey, FairQueue, NextBatch, QueuedRequest, QueueEntry, Result

EMBED, TOKENS = BatchKey("embed", 4), BatchKey("tokens", 4)
FOREVER = float("inf")


class NoSink:
    """Receives nothing here: the queue calls no sink."""

    def on_taken(self, entries: Sequence[QueueEntry]) -> None:
        raise AssertionError

    def on_dropped(self, entries: Sequence[QueueEntry]) -> None:
        raise AssertionError

    def on_result(self, index: int, result: Result | ServiceError, queue_s: float, infer_s: float) -> None:
        raise AssertionError

    def on_failed(self, error: ServiceError) -> None:
        raise AssertionError


def request(count: int = 1, deadline: float = FOREVER) -> QueuedRequest:
    return QueuedRequest("embed", count, deadline, NoSink())


def put(queue: FairQueue, key: BatchKey, of: QueuedRequest, at: float, count: int = 1, first: int = 0) -> None:
    for index in range(first, first + count):
        queue.put(key, QueueEntry(of, index, np.zeros((4, 3), np.uint8), np.arange(4, dtype=np.int32), at))


def batch(queue: FairQueue, now: float = 0.0, **options: bool) -> list[tuple[QueuedRequest, int]]:
    """The next batch, of which nothing has expired."""
    taken = queue.next_batch(now, **options)
    assert not taken.expired
    return [(entry.request, entry.index) for entry in taken.entries]


def test_requests_give_one_image_per_turn() -> None:
    queue, many, few = FairQueue(4), request(5), request(2)
    put(queue, EMBED, many, 0.0, 5)
    put(queue, EMBED, few, 1.0, 2)
    assert batch(queue, 2.0) == [(many, 0), (few, 0), (many, 1), (few, 1)]
    assert batch(queue, 3.0) == [(many, 2), (many, 3), (many, 4)]
    assert len(queue) == 0 and queue.next_batch(4.0) == NextBatch()


def test_a_served_request_goes_behind_those_that_wait() -> None:
    queue, first, second, third = FairQueue(1), request(3), request(1), request(1)
    put(queue, EMBED, first, 0.0, 3)
    put(queue, EMBED, second, 1.0)
    assert batch(queue, 2.0) == [(first, 0)]
    put(queue, EMBED, third, 3.0)
    order = [batch(queue, 4.0 + turn)[0][0] for turn in range(4)]
    assert order == [second, first, third, first]


def test_who_has_had_two_turns_in_a_batch_goes_behind_who_has_had_one() -> None:
    queue, requests = FairQueue(4), [request(8) for _ in range(3)]
    for number, of in enumerate(requests):
        put(queue, EMBED, of, float(number), 8)
    turns = [requests.index(of) for now in range(3) for of, _ in batch(queue, 10.0 + now)]
    assert turns == [0, 1, 2] * 4


def test_the_key_that_was_served_longest_ago_is_next() -> None:
    queue, ours, theirs = FairQueue(1), request(2), request(2)
    put(queue, EMBED, ours, 0.0, 2)
    put(queue, TOKENS, theirs, 1.0, 2)
    order = [batch(queue, now)[0][0].key for now in (2.0, 3.0, 4.0, 5.0)]
    assert order == [EMBED, TOKENS, EMBED, TOKENS]


def test_the_delay_counts_from_the_oldest_image() -> None:
    queue, early, late = FairQueue(3, max_delay_s=10.0), request(), request()
    put(queue, EMBED, early, 100.0)
    put(queue, EMBED, late, 106.0)
    assert queue.next_batch(107.0) == NextBatch(wait_s=3.0), "each newcomer must not put it off again"
    assert batch(queue, 110.0) == [(early, 0), (late, 0)]


def test_a_full_batch_does_not_wait_for_the_delay_nor_for_another_key() -> None:
    queue, lone, full = FairQueue(2, max_delay_s=10.0), request(), request(2)
    put(queue, TOKENS, lone, 100.0)
    put(queue, EMBED, full, 101.0, 2)
    assert batch(queue, 102.0) == [(full, 0), (full, 1)]
    assert queue.next_batch(102.0) == NextBatch(wait_s=8.0)
    assert batch(queue, 102.0, flush=True) == [(lone, 0)], "at the end nothing waits"


def test_an_image_past_its_deadline_is_returned_apart() -> None:
    queue, late, kept = FairQueue(4), request(2, deadline=5.0), request(1, deadline=50.0)
    put(queue, EMBED, late, 0.0, 2)
    put(queue, EMBED, kept, 1.0)
    taken = queue.next_batch(5.0)
    assert [entry.request for entry in taken.entries] == [kept]
    assert [(entry.request, entry.index) for entry in taken.expired] == [(late, 0), (late, 1)]
    assert len(queue) == 0


def test_a_batch_of_nothing_but_late_images_is_empty() -> None:
    queue, late = FairQueue(4), request(1, deadline=5.0)
    put(queue, EMBED, late, 0.0)
    taken = queue.next_batch(6.0)
    assert not taken.entries and len(taken.expired) == 1 and taken.wait_s == 0
    assert queue.next_batch(6.0) == NextBatch()


def test_a_removed_request_leaves_the_others() -> None:
    queue, gone, kept = FairQueue(4), request(2), request()
    put(queue, EMBED, gone, 0.0, 2)
    put(queue, EMBED, kept, 0.0)
    assert [entry.index for entry in queue.remove(gone)] == [0, 1]
    assert list(queue.remove(gone)) == [] and list(queue.remove(request())) == []
    assert batch(queue) == [(kept, 0)]


def test_the_images_of_one_request_have_one_key_even_after_some_were_taken() -> None:
    queue, mixed = FairQueue(4), request(2)
    put(queue, EMBED, mixed, 0.0)
    batch(queue)
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
            taken = queue.next_batch(now, flush=draw.random() < 0.2)
            left = [(entry.request, entry.index) for entry in [*taken.entries, *taken.expired]]
            assert len(set(left)) == len(left) and inside.issuperset(left)
            assert all(entry.request.deadline > now for entry in taken.entries)
            assert all(entry.request.deadline <= now for entry in taken.expired)
            inside -= set(left)
        assert len(queue) == len(inside)
