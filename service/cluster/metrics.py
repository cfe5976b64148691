"""The service's metrics through Ray's exporter.

Every node of a Ray cluster has one port on which Prometheus reads the metrics of all processes of that node, while
GET /metrics through Serve's proxy reaches any one replica. Each sample becomes a gauge of Ray, with the same name and
labels and with those of the replica. Ray puts `ray_` before every name. Counters and the buckets of histograms are
cumulative as they were, so `rate` and `histogram_quantile` work as before.
"""

from __future__ import annotations

import math
import threading
import time

from prometheus_client import CollectorRegistry
from ray.serve.metrics import Gauge

PERIOD_S = 5.0
"""Seconds between two exports; Ray's exporter itself reads every 10 seconds by default."""


class RayExporter:
    """Exports the samples of a registry by gauges of Ray, from within a replica."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Exports nothing yet."""
        self._registry = registry
        self._gauges: dict[tuple[str, tuple[str, ...]], Gauge] = {}

    def start(self) -> None:
        """Exports every PERIOD_S from now on, in a daemon thread: reading the metrics may ask the GPUs' driver."""
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def export(self) -> None:
        """Exports the samples as they are now."""
        for family in self._registry.collect():
            for sample in family.samples:
                if sample.name.endswith("_created") or not math.isfinite(sample.value):
                    continue
                labels = tuple(sample.labels)
                gauge = self._gauges.get((sample.name, labels))
                if gauge is None:
                    gauge = Gauge(sample.name, description=family.documentation, tag_keys=labels)
                    self._gauges[sample.name, labels] = gauge
                gauge.set(sample.value, tags=dict(sample.labels))

    def _run(self) -> None:
        while True:
            self.export()
            time.sleep(PERIOD_S)
