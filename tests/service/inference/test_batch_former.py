"""The plans of batches by measured seconds: when a batch of several images pays, and when the joined lane does."""

import math

import pytest

from model.engines.batch_seconds import BatchCurves, BatchSeconds
from service.inference.batch_former import BatchFormer, BatchPlan, RecentLoad, wait_seconds
from service.inference.queue import BatchKey
from tests.support.engines import fake_info

WHOLE = BatchKey("embed", 4)
CPU = BatchSeconds(lone=0.9, lanes={1: 1.0, 2: 1.97, 4: 3.84}, joined={})
"""A batch of 4 saves 4 %."""
GPU = BatchSeconds(lone=1.02, lanes={size: 1 + 0.02 * size for size in (1, 2, 4, 8, 16, 32, 64)}, joined={})


def former(
    seconds: BatchSeconds, lanes: int = 2, largest: int = 4, load: float = 0.0, rate: float = 0.0
) -> BatchFormer:
    """A former whose lanes have had this load for long, and at which images arrived at this rate while lanes ran."""
    curves = BatchCurves(shapes={"embed whole": seconds, "embed quarter": seconds})
    changes = {"batch_curves": curves, "joined": bool(seconds.joined)}
    of = BatchFormer(fake_info(lanes=lanes, preferred_batch=largest).model_copy(update=changes))
    now = 0.0
    of.advance(now, 0)
    for _ in range(1000):  # one second with all lanes busy, then a pause
        now += 1.0
        of.advance(now, lanes)
        for _ in range(round(rate)):
            of.count_arrival(lanes)
        if load:
            now += (1 - load) / load
            of.advance(now, 0)
        else:
            of.advance(now := now + 1000.0, 0)
    return of


def size(of: BatchFormer, waiting: int, idle: int = 1) -> int:
    plan = of.plan(WHOLE, waiting, waiting, waiting, idle)
    assert not plan.joined
    return plan.size


def test_without_measured_seconds_a_batch_is_as_large_as_it_can_be() -> None:
    of = BatchFormer(fake_info(lanes=2, preferred_batch=4))
    assert of.plan(WHOLE, 9, 9, 9, 2) == BatchPlan(4, joined=False)


@pytest.mark.parametrize("waiting", [1, 2, 4, 8, 16])
def test_on_a_cpu_at_half_load_images_run_one_by_one(waiting: int) -> None:
    assert size(former(CPU, load=0.5), waiting) == 1


def test_on_a_cpu_many_that_wait_run_in_full_batches_at_any_load() -> None:
    assert [size(former(CPU, load=load), 300) for load in (0.0, 0.5, 0.99)] == [4, 4, 4]


def test_a_saturated_cpu_takes_all_that_wait() -> None:
    saturated = former(CPU, load=1.0)
    assert [size(saturated, waiting) for waiting in range(1, 8)] == [1, 2, 3, 4, 4, 4, 4]


@pytest.mark.parametrize("load", [0.1, 0.5, 0.95])
def test_on_a_gpu_a_free_lane_takes_all_that_wait(load: float) -> None:
    of = former(GPU, largest=64, load=load)
    assert [size(of, waiting) for waiting in (1, 2, 3, 5, 17, 64, 200)] == [1, 2, 3, 5, 17, 64, 64]


@pytest.mark.parametrize("seconds", [CPU, CPU.model_copy(update={"lanes": {1: 1.0, 4: 3.0}})])
def test_a_request_of_several_images_uses_all_lanes_of_an_idle_machine(seconds: BatchSeconds) -> None:
    of = former(seconds)
    first = size(of, 4, idle=2)
    assert first <= 2 and size(of, 4 - first, idle=1) <= 2


def test_a_batch_is_no_larger_than_its_key_allows_and_others_behind_it_count() -> None:
    of = former(CPU, load=0.9)
    assert of.plan(WHOLE, 3, 3, 3, 1).size == 1
    assert of.plan(WHOLE, 3, 60, 60, 1).size == 3


def test_seconds_between_measured_sizes_and_beyond_them() -> None:
    """A saving that begins at 8 images is not seen at 2; beyond the largest measured size there is none more."""
    of = former(BatchSeconds(lone=1.0, lanes={1: 1.0, 4: 4.0, 8: 4.4}, joined={}), largest=16, load=0.9)
    assert [size(of, waiting) for waiting in (2, 3, 4, 8)] == [1, 1, 1, 8]
    assert 8 <= size(of, 100) <= 16


def test_each_key_has_the_seconds_of_its_shape() -> None:
    curves = BatchCurves(shapes={"embed whole": CPU, "embed quarter": GPU, "reconstruct quarter": GPU})
    of = BatchFormer(fake_info(lanes=2, preferred_batch=4).model_copy(update={"batch_curves": curves}))
    keys = [BatchKey("embed", 4), BatchKey("tokens", 4), BatchKey("embed", 1), BatchKey("reconstruct", 1)]
    assert [of.plan(key, 4, 4, 4, 1).size for key in keys] == [1, 1, 4, 4]


# --- the joined lane

TWO = BatchSeconds(lone=0.040, lanes={1: 0.045}, joined={1: 0.025})
SIXTEEN = BatchSeconds(lone=0.040, lanes={1: 0.045}, joined={1: 0.005})


def joins(seconds: BatchSeconds, images: int, lanes: int = 2, rate: float = 0.0) -> bool:
    return former(seconds, lanes, rate=rate).plan(WHOLE, images, images, images, lanes).joined


def test_a_lone_image_takes_the_joined_lane_if_that_is_faster() -> None:
    assert joins(TWO, 1)
    assert not joins(TWO.model_copy(update={"joined": {1: 0.041}}), 1)
    assert not joins(TWO.model_copy(update={"joined": {}}), 1)


def test_several_images_join_while_they_end_earlier_on_average_than_side_by_side() -> None:
    # Two end after 25 and 50 ms, 37.5 on average, side by side after 45. Seven: 100 and 102.9. Eight: both 112.5.
    assert [images for images in range(1, 12) if joins(TWO, images)] == [1, 2, 3, 4, 5, 6, 7]
    # On 16 lanes, 21 images end after 55 and 55.7 ms on average, and 22 after 57.5 and 57.3.
    assert [images for images in range(1, 33) if not joins(SIXTEEN, images, 16)][:1] == [22]


def test_the_joined_lane_runs_only_while_it_keeps_pace_with_the_arrivals() -> None:
    of = former(TWO)
    assert of.plan(WHOLE, 1, 1, 1, 2).joined
    for count in range(200):  # 50 per second, of which the joined lane takes 40
        of.advance(1e7 + count * 0.02, 2)
        of.count_arrival(2)
    assert not of.plan(WHOLE, 1, 1, 1, 2).joined


def test_two_images_that_come_together_after_a_pause_are_no_high_rate() -> None:
    of = former(TWO)
    of.advance(2e6, 0)
    of.count_arrival(0)
    assert of.plan(WHOLE, 1, 1, 2, 2).joined
    of.advance(2e6 + 0.005, 2)
    of.count_arrival(2)  # the second image of the request, 5 ms later
    of.advance(2e6 + 0.025, 2)
    assert of.plan(WHOLE, 1, 1, 1, 2).joined


def test_images_that_are_being_decoded_count_among_those_that_wait() -> None:
    assert former(TWO).plan(WHOLE, 1, 1, 1, 2).joined
    assert not former(TWO).plan(WHOLE, 1, 1, 16, 2).joined


def test_the_joined_lane_never_runs_beside_another() -> None:
    of = former(TWO)
    assert not of.plan(WHOLE, 1, 1, 1, 1).joined
    assert not of.plan(WHOLE, 1, 1, 1, 2, may_join=False).joined


# --- the load and the formulae


def test_the_recent_load_follows_the_lanes_and_forgets() -> None:
    load = RecentLoad(4, window_s=10.0)
    load.advance(0.0, 0)
    load.advance(1000.0, 3)
    assert load.busy == pytest.approx(0.75)
    load.advance(1010.0, 0)
    assert load.busy == pytest.approx(0.75 / math.e)


def test_arrivals_count_by_the_time_in_which_a_lane_is_busy() -> None:
    load = RecentLoad(2, window_s=100.0)
    load.advance(0.0, 0)
    for second in range(0, 2000, 2):  # 3 images in each busy second of two
        load.advance(second + 1.0, 0)
        load.advance(second + 2.0, 1)
        for _ in range(3):
            load.count_arrival()
    assert load.arrivals_per_s == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize("load", [0.1, 0.5, 0.9])
def test_the_wait_for_one_server_is_that_of_pollaczek_and_khinchine(load: float) -> None:
    assert wait_seconds(2.0, load / 2, 1) == pytest.approx(load * 2 / (2 * (1 - load)))


def test_the_wait_for_two_servers_is_near_the_known_one() -> None:
    # M/D/2 at a load of 0.5 waits 0.1767 s(1) by Crommelin's formula; half of M/M/2 is 1/6.
    assert wait_seconds(1.0, 1.0, 2) == pytest.approx(0.1767, rel=0.06)
    assert wait_seconds(1.0, 2.0, 2) == math.inf
