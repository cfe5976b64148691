"""Counters of several processes, read as one service's."""

import pytest

from service.metrics import Metrics
from service.workers.metrics_merge import CounterAggregator, exposition, packed_counters, unpacked_counters
from tests.support.metrics import sample


def counted(requests: int = 0, seconds: float = 0.1, endpoint: str = "/embed") -> Metrics:
    metrics = Metrics()
    for _ in range(requests):
        metrics.requests.labels(endpoint, "200").inc()
        metrics.request_duration.labels(endpoint).observe(seconds)
    return metrics


def told(tally: CounterAggregator, row: int, metrics: Metrics) -> None:
    tally.update(row, unpacked_counters(packed_counters(metrics)))


def test_all_are_added_up() -> None:
    tally = CounterAggregator()
    told(tally, 0, counted(2))
    told(tally, 1, counted(3, seconds=0.01))
    told(tally, 2, counted(1, endpoint="/classify"))
    own = counted(0)
    own.stage_duration.labels("queue").observe(0.5)
    text = exposition(own, tally.total())
    assert sample(text, "mae_requests_total", endpoint="/embed", code="200") == 5
    assert sample(text, "mae_requests_total", endpoint="/classify") == 1
    assert sample(text, "mae_request_duration_seconds_count", endpoint="/embed") == 5
    assert sample(text, "mae_request_duration_seconds_sum", endpoint="/embed") == pytest.approx(0.23)
    assert sample(text, "mae_request_duration_seconds_bucket", endpoint="/embed", le="0.016") == 3
    assert sample(text, "mae_request_duration_seconds_bucket", endpoint="/embed", le="+Inf") == 5
    assert sample(text, "mae_stage_duration_seconds_count", stage="queue") == 1


def test_what_is_told_twice_counts_once() -> None:
    tally, metrics = CounterAggregator(), counted(2)
    told(tally, 0, metrics)
    metrics.requests.labels("/embed", "200").inc()
    told(tally, 0, metrics)
    assert sample(exposition(Metrics(), tally.total()), "mae_requests_total") == 3


def test_the_dead_are_kept_and_their_successors_begin_at_zero() -> None:
    tally = CounterAggregator()
    told(tally, 0, counted(2))
    tally.retire(0)
    assert sample(exposition(Metrics(), tally.total()), "mae_requests_total") == 2
    told(tally, 0, counted(1))
    tally.retire(0)
    tally.retire(0)  # one that died before it counted anything
    told(tally, 0, counted(4))
    assert sample(exposition(Metrics(), tally.total()), "mae_requests_total") == 7


def test_a_series_is_as_old_as_its_oldest_part() -> None:
    tally, old = CounterAggregator(), counted(1)
    told(tally, 0, old)
    told(tally, 1, counted(1))
    created = sample(exposition(Metrics(), tally.total()), "mae_requests_created")
    assert created == sample(old.render(), "mae_requests_created")


def test_gauges_are_the_device_process_s() -> None:
    own, other, tally = Metrics(), Metrics(), CounterAggregator()
    own.ready.set(1)
    other.ready.set(1)
    told(tally, 0, other)
    assert sample(exposition(own, tally.total()), "mae_ready") == 1


def test_with_nothing_to_add_it_is_the_usual_exposition() -> None:
    metrics = counted(2)

    def own(text: bytes) -> list[str]:
        return [line for line in text.decode().splitlines() if "mae_" in line]

    assert own(exposition(metrics, {})) == own(metrics.render())
