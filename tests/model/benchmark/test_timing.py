"""Timing, held against engines that take a known time: by a clock of each thread's own, which only they put forward."""

import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from model.benchmark.timing import Contender, Size, inputs, measure, powers_of_two, sizes_of
from model.config import PRESETS
from model.engines.base import EngineError
from tests.support.engines import SMALL, FakeEngine


class Clock(threading.local):
    now = 0.0
    cores = 0.0
    """Of the whole process, as `time.process_time` tells it."""
    lock = threading.Lock()

    def forward(self, seconds: float) -> None:
        self.now += seconds
        with self.lock:
            Clock.cores += seconds / 4


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    clocks = SimpleNamespace(perf_counter=lambda: clock.now, process_time=lambda: Clock.cores)
    monkeypatch.setattr("model.benchmark.timing.time", clocks)
    return clock


def test_powers_of_two() -> None:
    assert {limit: powers_of_two(limit) for limit in (1, 2, 3, 4, 6, 32)} == {
        1: [1],
        2: [1, 2],
        3: [1, 2, 3],
        4: [1, 2, 4],
        6: [1, 2, 4, 6],
        32: [1, 2, 4, 8, 16, 32],
    }


def test_every_size_up_to_what_the_engine_likes() -> None:
    sizes = sizes_of(FakeEngine(preferred_batch=3, lanes=2))
    assert len(sizes) == len(set(sizes)) == 2 * 2 * 3 * 2
    assert {size.visible for size in sizes} == {4, 1}
    assert {(size.batch, size.lanes) for size in sizes} == {(b, n) for b in (1, 2, 3) for n in (1, 2)}
    encoder = FakeEngine()
    encoder.info = encoder.info.model_copy(update={"config": SMALL.model_copy(update={"decoder_depth": 0})})
    assert {size.operation for size in sizes_of(encoder)} == {"embed"}


@pytest.mark.parametrize("operation", ["embed", "reconstruct"])
def test_inputs_are_what_the_protocol_asks_for(operation) -> None:
    config = PRESETS["mae_tiny"]
    patches, visible_indices = inputs(config, Size(operation, 49, 3, 1))
    assert (patches.dtype, visible_indices.dtype, visible_indices.shape) == (np.uint8, np.int32, (3, 49))
    assert patches.shape == (3, 49 if operation == "embed" else 196, 768)
    assert (np.diff(visible_indices, axis=1) > 0).all() and visible_indices.min() >= 0 and visible_indices.max() < 196
    assert not np.array_equal(visible_indices[0], visible_indices[1])
    assert patches.std() > 50


def test_rate_and_latency_of_a_known_engine(clock: Clock) -> None:
    """A batch of four in 20 ms, on two lanes at once: 2 x 4 / 0.02 s."""
    engine = FakeEngine(preferred_batch=4, lanes=2, before=lambda images: clock.forward(0.02))
    one, two = measure([Contender("fake", engine, [Size("embed", 4, 4, 1), Size("embed", 4, 4, 2)])], 0.39, 2)
    assert (one.images_per_s, two.images_per_s) == (pytest.approx(200), pytest.approx(400))
    for figure in (one, two):
        assert (figure.engine, figure.operation, figure.visible, figure.batch) == ("fake", "embed", 4, 4)
        assert (figure.p50_ms, figure.p99_ms) == (pytest.approx(20), pytest.approx(20))
        assert figure.core_ms == pytest.approx(20 / 4 / 4), "a quarter of a core, four images a batch"
    assert (one.batches, two.batches) == (20, 40)  # ten in a turn of 195 ms, on each lane


def test_what_is_slow_at_first_is_not_timed_and_slow_batches_show_in_p99(clock: Clock) -> None:
    calls = iter(range(10**6))

    def before(images: list[int]) -> None:
        number = next(calls)
        clock.forward(0.5 if number == 0 else 0.1 if number in (10, 20) else 0.005)

    [figure] = measure([Contender("fake", FakeEngine(before=before), [Size("embed", 4, 1, 1)])], 0.5, 1)
    assert figure.p50_ms == pytest.approx(5)
    assert 90 < figure.p99_ms <= 100.1


def test_the_rate_is_the_median_of_the_turns(clock: Clock) -> None:
    """One turn in five is disturbed: it leaves no trace."""
    turn: list[str] = []
    engine = FakeEngine(before=lambda images: clock.forward(0.1 if len(turn) == 2 else 0.01))
    [figure] = measure([Contender("fake", engine, [Size("embed", 4, 1, 1)])], 0.5, 5, turn.append)
    assert len(turn) == 5
    assert figure.images_per_s == pytest.approx(100)


def test_contenders_take_turns() -> None:
    """a b, b a, a b, …: each size is measured for all before the next, and every other turn goes backwards."""
    messages: list[str] = []
    sizes = [Size("embed", 4, 1, 1), Size("embed", 4, 2, 1)]
    contenders = [Contender("a", FakeEngine(), sizes), Contender("b", FakeEngine(), sizes[:1])]
    figures = measure(contenders, 0.003, 3, messages.append)
    order = [line.split(": ")[1] for line in messages]
    assert order == ["a", "b", "a", "a", "b", "a", "a", "b", "a"]
    assert [(figure.engine, figure.batch) for figure in figures] == [("a", 1), ("b", 1), ("a", 2)]
    assert all(figure.batches >= 3 for figure in figures), "each turn times one batch at least"


def test_each_lane_has_a_thread_of_its_own() -> None:
    seen: list[tuple[int, int, float]] = []

    class Watched(FakeEngine):
        def embed(self, lane, patches, visible_indices):
            seen.append((lane, threading.get_ident(), time.perf_counter()))
            time.sleep(0.01)
            return super().embed(lane, patches, visible_indices)

    measure([Contender("fake", Watched(lanes=3), [Size("embed", 4, 1, 3)])], 0.1, 1)
    timed = seen[3:]  # after one call on each lane, which is not timed
    threads = {lane: {thread for number, thread, _ in timed if number == lane} for lane in range(3)}
    assert all(len(ids) == 1 for ids in threads.values()) and len(set.union(*threads.values())) == 3
    for lane in range(3):
        starts = [start for number, _, start in timed if number == lane]
        assert all(later - earlier >= 0.01 for earlier, later in pairwise(starts)), "a lane runs one batch at a time"


def test_a_failure_is_not_a_figure() -> None:
    def before(images: list[int]) -> None:
        if len(images) == 2:
            raise EngineError("out of memory, say")

    contender = Contender("fake", FakeEngine(lanes=2, before=before), [Size("embed", 4, 2, 2)])
    with pytest.raises(EngineError, match="out of memory"):
        measure([contender], 0.1, 2)
