"""The watchdog in virtual time: what hangs is found, and what is only slow, stopped, asleep or throttled is not."""

import math
import random
import threading
from collections.abc import Callable

import numpy as np
import pytest

from model.engines.base import MeasureStep
from service.inference.watchdog import (
    Heartbeat,
    LoadWatchdog,
    Watchdog,
    WatchedEngine,
    WatchedMeasurement,
    beat_until_hang,
)
from tests.support.engines import FakeEngine
from tests.support.queueing import ALL_FOUR, image

HOUR = 3600.0


class Machine:
    """A clock, and a thread that beats as soon as the machine lets it."""

    def __init__(self, wakes_at: Callable[[float], float] = lambda due: due, image_seconds: float = 0.01) -> None:
        self.now, self.slow = 0.0, 0
        self.watchdog = Watchdog(image_seconds, self._count_slow, lambda: self.now)
        self._wakes_at = wakes_at
        """The time at which a thread runs that is to wake at a given time."""

    def run_until(self, end: float) -> str | None:
        """Beats until a time; returns what hangs."""

        def wait(seconds: float) -> bool:
            self.now = self._wakes_at(self.now + seconds)
            return self.now >= end

        return beat_until_hang(self.watchdog, wait, lambda: self.now)

    def run_call(self, seconds: float, images: int = 1, operation: str = "embed") -> str | None:
        """A call of some seconds by the clock; returns what hangs meanwhile."""
        with self.watchdog.watch(0, operation, images):
            found = self.run_until(self.now + seconds)
        return found

    def _count_slow(self) -> None:
        self.slow += 1


def throttled(quota_s: float = 0.01, period_s: float = 0.1) -> Callable[[float], float]:
    """A cgroup that may run at the beginning of each period, as its threads use all CPUs that they get."""

    def wakes_at(due: float) -> float:
        within = math.fmod(due, period_s)
        return due if within < quota_s else due - within + period_s

    return wakes_at


def stopped(begin: float, seconds: float) -> Callable[[float], float]:
    """A process that is stopped from `begin` on."""
    return lambda due: begin + seconds if begin <= due < begin + seconds else due


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)


@pytest.mark.parametrize(
    ("image_seconds", "images", "limit_s"), [(0.01, 1, 30), (0, 16, 30), (1, 1, 30), (2, 1, 40), (2, 4, 160)]
)
def test_a_call_hangs_after_20_times_its_seconds_and_30_s_at_least(
    image_seconds: float, images: int, limit_s: float
) -> None:
    assert Machine(image_seconds=image_seconds).run_call(limit_s - 0.5, images) is None
    machine = Machine(image_seconds=image_seconds)
    found = machine.run_call(HOUR, images)
    assert found is not None and found.startswith(
        f"lane 0 hangs: a batch of {images} for embed has not returned after "
    )
    assert limit_s < machine.now < limit_s + 0.5


def test_many_calls_one_after_the_other_are_none_that_hangs() -> None:
    machine = Machine()
    assert [machine.run_call(10) for _ in range(20)] == [None] * 20
    assert machine.run_until(machine.now + 100) is None


def test_the_lane_that_hangs_is_named() -> None:
    machine = Machine()
    with machine.watchdog.watch(3, "reconstruct", 2):
        for _ in range(2):
            assert machine.run_call(14) is None
        with machine.watchdog.watch(1, "tokens", 1):
            found = machine.run_until(HOUR)
    assert found is not None and found.startswith("lane 3 hangs: a batch of 2 for reconstruct")


def test_a_lane_that_becomes_slow_by_and_by_never_hangs() -> None:
    machine = Machine(image_seconds=2)
    for seconds in (19, 60, 240, 700):  # the median of 15 calls follows after eight
        for _ in range(8):
            assert machine.run_call(seconds) is None
    assert machine.slow == 3 * 8  # those of 19 s are not ten times as slow
    assert machine.run_call(1400) is None
    assert machine.run_call(30, operation="tokens") is None, "each operation has seconds of its own"
    assert machine.run_call(50, operation="reconstruct") is not None


def test_one_call_that_took_long_does_not_raise_the_limit() -> None:
    machine = Machine()
    for seconds in (1, 29, 1):
        assert machine.run_call(seconds) is None
    assert machine.run_call(35) is not None


@pytest.mark.parametrize(("seconds", "slow"), [(0.9, 0), (1.5, 1), (25, 1)])
def test_a_slow_call_is_counted_once(seconds: float, slow: int) -> None:
    machine = Machine()
    machine.run_call(seconds)
    assert machine.slow == slow
    machine = Machine(image_seconds=3)
    machine.run_call(29)
    assert machine.slow == 0


def test_a_slow_call_is_counted_while_it_runs() -> None:
    machine = Machine()
    with machine.watchdog.watch(0, "embed", 1):
        machine.run_until(2)
        assert machine.slow == 1


# --- what is not a hang


@pytest.mark.parametrize("seconds", [60, HOUR, 100 * HOUR])
def test_a_process_that_was_stopped_goes_on(seconds: float) -> None:
    machine = Machine(stopped(10, seconds))
    assert machine.run_call(seconds + 25) is None, "it has run for 25 s"
    assert Machine(stopped(10, seconds)).run_call(seconds + 40) is not None, "a hang is found nevertheless"


def test_a_process_that_is_stopped_again_and_again_goes_on() -> None:
    assert Machine(throttled(1, 60)).run_call(25 * 60) is None


def test_a_clock_that_jumps_is_not_believed() -> None:
    machine = Machine()
    with machine.watchdog.watch(0, "embed", 1):
        for jump in (HOUR, -HOUR, 10 * HOUR, -5 * HOUR):
            machine.now += jump
            assert machine.run_until(machine.now + 5) is None
        assert machine.run_until(machine.now + 15) is not None


@pytest.mark.parametrize("period_s", [0.1, 0.25, 1])
@pytest.mark.parametrize("image_seconds", [0.05, 2, 20])
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_cgroup_that_is_throttled_to_a_tenth_is_slow(period_s: float, image_seconds: float, share: float) -> None:
    """The call takes more than 20 times as long: a tenth of one CPU, where two were measured.

    On a busy machine the tenth is spent slowly, so that the process may run in a larger share of each period.
    """
    for begin in (0, 0.013, 0.077):
        machine = Machine(throttled(share * period_s, period_s), image_seconds)
        machine.now = begin
        assert machine.run_call(20 * image_seconds + 10) is None
        assert machine.slow == 1


def test_a_hang_is_found_under_throttling_too() -> None:
    machine = Machine(throttled())
    assert machine.run_call(HOUR) is not None
    assert 60 < machine.now < 300


# --- loading


def load(wakes_at: Callable[[float], float], seconds: float, new_step_at: float = 0) -> str | None:
    """Loads for some seconds by the clock, with steps that may take 60; returns what hangs."""
    machine = Machine(wakes_at)
    watchdog = LoadWatchdog(60, lambda: "compiling" if machine.now >= new_step_at else "converting")

    def wait(slept_s: float) -> bool:
        machine.now = wakes_at(machine.now + slept_s)
        return machine.now >= seconds

    return beat_until_hang(watchdog, wait, lambda: machine.now)


def test_a_load_that_does_not_end_hangs_and_its_step_is_named() -> None:
    assert load(lambda due: due, 59) is None
    found = load(lambda due: due, 61)
    assert found is not None and "60 s of running time (LOAD_TIMEOUT_S)" in found and found.endswith(": compiling")


def test_every_step_has_its_own_time() -> None:
    assert load(lambda due: due, 109, new_step_at=50) is None
    assert load(lambda due: due, 113, new_step_at=50) is not None


def test_time_in_which_the_process_does_not_run_is_no_time_of_loading() -> None:
    assert load(stopped(10, HOUR), HOUR + 45) is None
    assert load(stopped(10, HOUR), HOUR + 65) is not None
    assert load(throttled(), 120) is None


# --- around the class


def test_the_calls_of_an_engine_are_watched() -> None:
    machine = Machine()

    def before(images: list[int]) -> None:
        assert machine.run_until(machine.now + HOUR) is not None
        if images == [13]:
            raise ZeroDivisionError

    engine = FakeEngine(before=before)
    watched = WatchedEngine(engine, machine.watchdog)
    patches, indices = image(7)[None], ALL_FOUR[None]
    np.testing.assert_array_equal(watched.embed(0, patches, indices), np.full((1, 2, 8), 7, np.float32))
    assert watched.tokens(0, patches, indices).shape == (1, 4, 8)
    np.testing.assert_array_equal(watched.reconstruct(0, patches, indices)[0], patches)
    assert watched.info == engine.info
    with pytest.raises(ZeroDivisionError):
        watched.embed(0, image(13)[None], indices)
    assert machine.run_until(machine.now + 100) is None, "a call that has raised has ended"


def test_quick_calls_of_the_joined_lane_do_not_shorten_the_limit_of_the_others() -> None:
    machine = Machine(image_seconds=2)
    for _ in range(20):
        with machine.watchdog.watch(2, "embed", 1):
            assert machine.run_until(machine.now + 0.3) is None
    assert machine.run_call(39) is None


def test_the_steps_of_a_measurement_are_watched() -> None:
    machine = Machine()
    recorded: list[float] = []

    def run(lane: int) -> float:
        assert lane == 1
        assert machine.run_until(machine.now + HOUR) is not None
        return 2.5

    class Measurement:
        curves = None

        def prepare(self) -> None:
            recorded.append(0.0)

        def next_step(self) -> MeasureStep | None:
            return None if len(recorded) > 1 else MeasureStep((1,), "embed", 4, run, recorded.append)

        def abandon(self) -> None:
            recorded.append(-1.0)

    watched = WatchedMeasurement(Measurement(), machine.watchdog)
    watched.prepare()
    step = watched.next_step()
    assert step is not None and (step.lanes, step.images) == ((1,), 4)
    step.record(step.run(1))
    assert recorded == [0.0, 2.5] and watched.next_step() is None
    watched.abandon()
    assert recorded.pop() == -1.0
    assert machine.run_until(machine.now + 100) is None


def test_the_thread_calls_once_and_ends() -> None:
    found: list[str] = []
    called = threading.Event()

    def on_hang(reason: str) -> None:
        found.append(reason)
        called.set()

    class Impatient(Watchdog):
        def beat(self, slept_s: float, late_s: float) -> str | None:
            return super().beat(100, 0)

    watchdog = Impatient(0, lambda: None)
    heartbeat = Heartbeat(watchdog, on_hang)
    with watchdog.watch(0, "embed", 1):
        heartbeat.start()
        assert called.wait(60)
    heartbeat.stop()
    assert len(found) == 1


def test_the_thread_stops_when_it_is_told() -> None:
    heartbeat = Heartbeat(Watchdog(0, lambda: None), lambda reason: None)
    heartbeat.start()
    heartbeat.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]
