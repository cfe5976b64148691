"""The simulated fleet against formulae of queueing theory and against Kubernetes' description of its autoscaler."""

import math

import numpy as np
import pytest

from tests.benchmarks.arrivals import bursts, constant, day
from tests.benchmarks.autoscaler import Autoscaler, Recommender, Target
from tests.benchmarks.fleet import Pod, simulate

SECONDS = 4000.0


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def erlang_b(servers: int, load: float) -> float:
    """The share of calls that find all servers busy where none can wait, by the usual recursion."""
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = load * blocked / (count + load * blocked)
    return blocked


def erlang_c(servers: int, load: float) -> float:
    """The share of customers who must wait in M/M/c."""
    blocked = erlang_b(servers, load)
    return blocked / (1 - load / servers * (1 - blocked))


@pytest.mark.parametrize(("lanes", "use"), [(1, 0.7), (4, 0.8), (16, 0.9)])
def test_random_times_on_several_lanes_are_m_m_c(lanes: int, use: float) -> None:
    pod = Pod(lanes=lanes, batch=1, image_s=0.02 * lanes, queue_images=10**9, exponential=True)
    arrivals_per_s = use * pod.images_per_s
    outcome = simulate(constant(arrivals_per_s), SECONDS, pod, 1, rng())
    must_wait = erlang_c(lanes, use * lanes)
    assert len(outcome.waits) == pytest.approx(arrivals_per_s * SECONDS, rel=0.02)
    assert (outcome.waits > 0).mean() == pytest.approx(must_wait, rel=0.03)
    assert outcome.waits.mean() == pytest.approx(must_wait * pod.image_s / (lanes * (1 - use)), rel=0.08)
    # Waits above 0 are exponential: the 99th percentile of all follows.
    p99 = pod.image_s / (lanes * (1 - use)) * math.log(must_wait / 0.01)
    assert np.percentile(outcome.waits, 99) == pytest.approx(p99, rel=0.1)


@pytest.mark.parametrize("use", [0.5, 0.8])
def test_constant_times_on_one_lane_are_m_d_1(use: float) -> None:
    pod = Pod(lanes=1, batch=1, image_s=0.02, queue_images=10**9)
    outcome = simulate(constant(use / 0.02), SECONDS, pod, 1, rng())
    assert outcome.waits.mean() == pytest.approx(use / (2 * (1 - use)) * 0.02, rel=0.05)  # Pollaczek and Khinchine
    np.testing.assert_allclose(outcome.times, outcome.waits + 0.02, atol=1e-9)


def test_a_balancer_that_picks_at_random_makes_queues_of_their_own() -> None:
    pod = Pod(lanes=1, batch=1, image_s=0.02, queue_images=10**9, exponential=True)
    outcome = simulate(constant(3 * 0.7 / 0.02), SECONDS / 3, pod, 3, rng())
    assert outcome.waits.mean() == pytest.approx(0.7 / (1 - 0.7) * 0.02, rel=0.08)  # M/M/1 each, not M/M/3


def test_without_a_queue_images_are_refused_as_by_erlang_b() -> None:
    pod = Pod(lanes=5, batch=1, image_s=0.1, queue_images=0, exponential=True)
    outcome = simulate(constant(40), SECONDS, pod, 1, rng())
    assert outcome.refused / (outcome.refused + len(outcome.waits)) == pytest.approx(erlang_b(5, 4), rel=0.03)


def test_under_overload_batches_are_full_and_the_queue_stays_at_its_limit() -> None:
    pod = Pod(lanes=2, batch=8, image_s=0.002, batch_s=0.02, queue_images=100)
    outcome = simulate(constant(3 * pod.images_per_s), 60, pod, 1, rng())
    assert pod.images_per_s == pytest.approx(2 * 8 / 0.036)
    assert len(outcome.waits) / 60 == pytest.approx(pod.images_per_s, rel=0.02)
    assert np.percentile(outcome.waits, 99) == pytest.approx(100 / pod.images_per_s, rel=0.1)


def test_the_day_and_the_bursts_have_the_rates_that_they_say() -> None:
    times = np.linspace(0, 86_400, 100_001)
    rate = day(150)(times)
    assert rate.mean() == pytest.approx(150, rel=1e-3)
    assert (rate.min(), rate.max()) == pytest.approx((60, 240))
    outcome = simulate(bursts(10, 100, 100, 20), 5000, Pod(1, 1, 0.001, queue_images=10**9), 1, rng())
    assert len(outcome.waits) == pytest.approx(50 * (80 * 10 + 20 * 100), rel=0.02)


# --- the autoscaler, by Kubernetes' documentation

FREE = {"up_window_s": 0.0, "down_window_s": 0.0, "up_pods": 99, "down_pods": 99, "least": 1, "most": 99}
LOAD = Target("busy", 100, 60)


def recommender(**options: float) -> Recommender:
    return Recommender(Autoscaler((LOAD,), **{**FREE, **options}))  # type: ignore[arg-type]


def test_replicas_follow_the_metric_over_its_target() -> None:
    """A mean of 200 at a target of 100 doubles the replicas, and one of 50 halves them; a tenth is tolerated."""
    for mean, expected in ((200, 8), (50, 2), (109, 4), (91, 4), (112, 5), (10_000, 99), (0, 1)):
        assert recommender().replicas(0, 4, [mean * 4]) == expected


def test_of_several_metrics_the_largest_number_counts() -> None:
    scaler = Autoscaler((LOAD, Target("queue", 16, 60)), **FREE)  # type: ignore[arg-type]
    assert Recommender(scaler).replicas(0, 2, [200, 160]) == 10
    assert Recommender(scaler).replicas(0, 2, [900, 0]) == 9


def test_a_short_peak_within_the_window_adds_nothing_and_a_short_lull_removes_nothing() -> None:
    steady = recommender(up_window_s=30, down_window_s=60)
    sums = {0: 400, 15: 900, 30: 400, 45: 900, 60: 900, 75: 900, 90: 100, 105: 400}
    counts, current = [], 4
    for now, total in sums.items():
        current = steady.replicas(now, current, [total])
        counts.append(current)
    assert counts == [4, 4, 4, 4, 4, 9, 9, 9]
    assert steady.replicas(180, 9, [400]) == 4


def test_policies_bound_the_changes_of_a_period() -> None:
    up = recommender(up_pods=2, up_period_s=60)
    assert [up.replicas(now, current, [900]) for now, current in ((0, 2), (15, 4), (60, 4), (75, 6))] == [4, 4, 6, 6]
    down = recommender(down_pods=1, down_period_s=300)
    assert [down.replicas(now, current, [100]) for now, current in ((0, 5), (15, 4), (300, 4))] == [4, 4, 3]


def test_a_fleet_grows_under_load_and_shrinks_after_it() -> None:
    pod = Pod(lanes=2, batch=8, image_s=0.02, start_s=10)
    scaler = Autoscaler((Target("busy", 0.7, 60),), least=1, most=6, down_window_s=60, down_period_s=60)
    outcome = simulate(bursts(20, 250, 1200, 600), 2400, pod, scaler, rng())
    counts = [count for _, count in outcome.replicas]
    assert max(counts) == 4  # 250/s over 0.7 * 100/s
    assert counts[0] == counts[-1] - 3 == 1 or min(counts[counts.index(4) :]) == 1
    steady = sum(
        (until - at) * count
        for (at, count), (until, _) in zip(outcome.replicas, [*outcome.replicas[1:], (2400, 0)], strict=True)
    )
    assert outcome.replica_s == pytest.approx(steady)
