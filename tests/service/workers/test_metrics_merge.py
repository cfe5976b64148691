"""Counters of several processes, read as one service's."""

import pytest

from service.metrics import Metrics
from service.workers.metrics_merge import CounterAggregator, exposition, pack_counters, unpack_counters
from tests.support.metrics import sample


def counted(requests: int = 0, seconds: float = 0.1, endpoint: str = "/embed") -> Metrics:
    metrics = Metrics()
    for _ in range(requests):
        metrics.requests.labels(endpoint, "200").inc()
        metrics.request_duration.labels(endpoint).observe(seconds)
    return metrics


def send(aggregator: CounterAggregator, worker_index: int, metrics: Metrics) -> None:
    aggregator.update(worker_index, unpack_counters(pack_counters(metrics)))


def test_all_workers_are_added_up() -> None:
    aggregator = CounterAggregator()
    send(aggregator, 0, counted(2))
    send(aggregator, 1, counted(3, seconds=0.01))
    send(aggregator, 2, counted(1, endpoint="/classify"))
    own = counted(0)
    own.stage_duration.labels("queue").observe(0.5)
    text = exposition(own, aggregator.total())
    assert sample(text, "mae_requests_total", endpoint="/embed", code="200") == 5
    assert sample(text, "mae_requests_total", endpoint="/classify") == 1
    assert sample(text, "mae_request_duration_seconds_count", endpoint="/embed") == 5
    assert sample(text, "mae_request_duration_seconds_sum", endpoint="/embed") == pytest.approx(0.23)
    assert sample(text, "mae_request_duration_seconds_bucket", endpoint="/embed", le="0.016") == 3
    assert sample(text, "mae_request_duration_seconds_bucket", endpoint="/embed", le="+Inf") == 5
    assert sample(text, "mae_stage_duration_seconds_count", stage="queue") == 1


def test_counters_that_are_sent_twice_count_once() -> None:
    aggregator, metrics = CounterAggregator(), counted(2)
    send(aggregator, 0, metrics)
    metrics.requests.labels("/embed", "200").inc()
    send(aggregator, 0, metrics)
    assert sample(exposition(Metrics(), aggregator.total()), "mae_requests_total") == 3


def test_counts_of_a_dead_worker_are_kept_and_its_successor_begins_at_zero() -> None:
    aggregator = CounterAggregator()
    send(aggregator, 0, counted(2))
    aggregator.retire(0)
    assert sample(exposition(Metrics(), aggregator.total()), "mae_requests_total") == 2
    send(aggregator, 0, counted(1))
    aggregator.retire(0)
    aggregator.retire(0)  # a worker that died before it counted anything
    send(aggregator, 0, counted(4))
    assert sample(exposition(Metrics(), aggregator.total()), "mae_requests_total") == 7


def test_no_series_tells_when_it_was_created() -> None:
    aggregator = CounterAggregator()
    send(aggregator, 0, counted(1))
    send(aggregator, 1, counted(1))
    assert not any(key[0].endswith("_created") for key in aggregator.total())
    assert b"_created" not in exposition(counted(1), aggregator.total())
    assert b"_created" not in counted(1).render()


def test_gauges_are_those_of_the_engine_process() -> None:
    own, other, aggregator = Metrics(), Metrics(), CounterAggregator()
    own.ready.set(1)
    other.ready.set(1)
    send(aggregator, 0, other)
    assert sample(exposition(own, aggregator.total()), "mae_ready") == 1


def test_with_nothing_to_add_it_is_the_usual_exposition() -> None:
    metrics = counted(2)

    def own(text: bytes) -> list[str]:
        return [line for line in text.decode().splitlines() if "mae_" in line]

    assert own(exposition(metrics, {})) == own(metrics.render())
