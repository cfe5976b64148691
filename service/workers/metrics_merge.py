"""The workers' counters and histograms, added to those of the device process whenever Prometheus asks.

A worker sends all of its counters as they stand, so nothing depends on which messages arrived; what a dead worker had
counted is kept. Gauges are the device process's alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from service.metrics import Metrics

Key = tuple[str, tuple[tuple[str, str], ...]]
Counts = dict[Key, float]
"""Values by a sample's name and labels."""
CREATED = "_created"


def packed_counters(metrics: Metrics) -> bytes:
    """Everything that `metrics` has counted, as it crosses."""
    return orjson.dumps(
        [
            [sample.name, sample.labels, sample.value]
            for metric in vars(metrics).values()
            if isinstance(metric, (Counter, Histogram))
            for family in metric.collect()
            for sample in family.samples
        ]
    )


def unpacked_counters(data: bytes | memoryview) -> Counts:
    """What `packed_counters` packed."""
    return {_key(name, labels): value for name, labels, value in orjson.loads(data)}


class CounterAggregator:
    """What the workers, living and dead, have counted."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._living: dict[int, Counts] = {}
        self._dead: Counts = {}

    def update(self, row: int, counts: Counts) -> None:
        """The counters of the worker in `row` as they stand now."""
        self._living[row] = counts

    def retire(self, row: int) -> None:
        """The worker in `row` is dead; its successor begins at zero."""
        self._dead = _sum([self._dead, self._living.pop(row, {})])

    def total(self) -> Counts:
        """Of all workers."""
        return _sum([self._dead, *self._living.values()])


def exposition(metrics: Metrics, counts: Counts) -> bytes:
    """The exposition of `metrics` with `counts` added. Asks the GPUs' driver: call it in a thread."""
    merged = CollectorRegistry()
    merged.register(_Merged(metrics.registry, counts))
    return generate_latest(merged)


class _Merged(Collector):
    def __init__(self, registry: CollectorRegistry, counts: Counts) -> None:
        self._registry = registry
        self._counts = counts

    def describe(self) -> Iterable[Metric]:
        return []  # or the registry would collect, to learn the names

    def collect(self) -> Iterator[Metric]:
        left = dict(self._counts)
        for family in self._registry.collect():
            if family.type in ("counter", "histogram"):
                _add(family, left)
            yield family


def _add(family: Metric, left: Counts) -> None:
    """Adds what `left` has of this family, and takes it out."""
    mine = {_key(sample.name, sample.labels): sample.value for sample in family.samples}
    endings = ("_total", CREATED) if family.type == "counter" else ("_bucket", "_sum", "_count", CREATED)
    names = {family.name + ending for ending in endings}
    theirs = {key: left.pop(key) for key in list(left) if key[0] in names}
    family.samples = []
    for (name, labels), value in _sum([mine, theirs]).items():
        family.add_sample(name, dict(labels), value)


def _sum(parts: Iterable[Counts]) -> Counts:
    """Counts add up; a series is as old as its oldest part."""
    whole: Counts = {}
    for part in parts:
        for key, value in part.items():
            if key not in whole:
                whole[key] = value
            else:
                whole[key] = min(whole[key], value) if key[0].endswith(CREATED) else whole[key] + value
    return whole


def _key(name: str, labels: dict[str, Any]) -> Key:
    return name, tuple(labels.items())
