"""The workers' counters and histograms, added to those of the engine process at every scrape.

A worker sends the values of all its counters, so the sum does not depend on which of its messages have arrived. The
counts of a dead worker are kept. Gauges are those of the engine process alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from service.metrics import CREATED, Metrics

SampleKey = tuple[str, tuple[tuple[str, str], ...]]
"""The name and the labels of a sample."""
Counts = dict[SampleKey, float]
"""The values of samples."""


def pack_counters(metrics: Metrics) -> bytes:
    """All counters and histograms of `metrics` as bytes."""
    return orjson.dumps(
        [
            [sample.name, sample.labels, sample.value]
            for metric in vars(metrics).values()
            if isinstance(metric, (Counter, Histogram))
            for family in metric.collect()
            for sample in family.samples
            if not sample.name.endswith(CREATED)
        ]
    )


def unpack_counters(data: bytes | memoryview) -> Counts:
    """The values that `pack_counters` packed."""
    return {_key(name, labels): value for name, labels, value in orjson.loads(data)}


class CounterAggregator:
    """Adds up the counts of all workers, the dead ones included."""

    def __init__(self) -> None:
        """No worker has counted anything yet."""
        self._running: dict[int, Counts] = {}
        """The counts of the workers that run, by worker index."""
        self._retired: Counts = {}
        """The sum of the counts of all dead workers."""

    def update(self, worker_index: int, counts: Counts) -> None:
        """Replaces the counts of a worker."""
        self._running[worker_index] = counts

    def retire(self, worker_index: int) -> None:
        """Keeps the counts of a dead worker; its successor begins at zero."""
        self._retired = _sum([self._retired, self._running.pop(worker_index, {})])

    def total(self) -> Counts:
        """The sum over all workers."""
        return _sum([self._retired, *self._running.values()])


def exposition(metrics: Metrics, counts: Counts) -> bytes:
    """The exposition of `metrics` with `counts` added. This asks the GPUs' driver: call it in a thread."""
    merged = CollectorRegistry()
    merged.register(_MergedCollector(metrics.registry, counts))
    return generate_latest(merged)


class _MergedCollector(Collector):
    def __init__(self, registry: CollectorRegistry, counts: Counts) -> None:
        self._registry = registry
        self._counts = counts

    def describe(self) -> Iterable[Metric]:
        return []  # without this, the registry would collect once more to learn the names

    def collect(self) -> Iterator[Metric]:
        unmerged = dict(self._counts)
        for family in self._registry.collect():
            if family.type in ("counter", "histogram"):
                _add(family, unmerged)
            yield family


def _add(family: Metric, unmerged: Counts) -> None:
    """Moves the values of `family` from `unmerged` into `family`."""
    own = {_key(sample.name, sample.labels): sample.value for sample in family.samples}
    endings = ("_total",) if family.type == "counter" else ("_bucket", "_sum", "_count")
    names = {family.name + ending for ending in endings}
    workers = {key: unmerged.pop(key) for key in list(unmerged) if key[0] in names}
    family.samples = []
    for (name, labels), value in _sum([own, workers]).items():
        family.add_sample(name, dict(labels), value)


def _sum(parts: Iterable[Counts]) -> Counts:
    """The sum of the counts."""
    total: Counts = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total.get(key, 0) + value
    return total


def _key(name: str, labels: dict[str, Any]) -> SampleKey:
    return name, tuple(labels.items())
