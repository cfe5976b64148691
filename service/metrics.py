"""Every Prometheus metric, once."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from model.engines.base import EngineInfo
from service.gpu_metrics import GPUCollector

SECONDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32)
POWERS_OF_TWO = tuple(2**n for n in range(11))


class Metrics:
    """The service's metrics in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        """Registers them all, with those of the process and, where there are any, of the GPUs."""
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._gpus = GPUCollector()
        registry.register(self._gpus)
        self.requests = Counter(
            "mae_requests",
            "Requests answered; code 499 is a client that left.",
            ["endpoint", "code"],
            registry=registry,
        )
        self.request_duration = Histogram(
            "mae_request_duration_seconds",
            "From a request's headers to the last byte of its answer.",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self.stage_duration = Histogram(
            "mae_stage_duration_seconds",
            "Time an image spends in a stage: read (the whole body), decode, queue, infer (its batch), render.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.images = Counter("mae_images", "Images answered.", ["endpoint"], registry=registry)
        self.batch_size = Histogram(
            "mae_batch_size", "Images in a batch.", ["operation"], buckets=POWERS_OF_TWO, registry=registry
        )
        self.rejected = Counter("mae_rejected", "Requests refused, by error code.", ["reason"], registry=registry)
        self.dropped = Counter(
            "mae_dropped_images", "Images accepted but given up before a batch.", ["reason"], registry=registry
        )
        self.engine_failures = Counter(
            "mae_engine_failures",
            "Engine calls that raised, and rows that were not numbers.",
            ["kind"],
            registry=registry,
        )
        for kind in ("raised", "not_finite"):
            self.engine_failures.labels(kind)  # there from 0: increase() cannot see a counter that begins at 1
        self.queue_images = Gauge("mae_queue_images", "Images waiting for a batch.", registry=registry)
        self.admitted_images = Gauge(
            "mae_admitted_images", "Images waiting or being decoded: what QUEUE_IMAGES bounds.", registry=registry
        )
        self.lanes_busy = Gauge("mae_lanes_busy", "Lanes that are running a batch.", registry=registry)
        self.inflight_bytes = Gauge("mae_inflight_bytes", "Bytes of request bodies held.", registry=registry)
        self.inflight_requests = Gauge("mae_inflight_requests", "Requests being answered.", registry=registry)
        self.ready = Gauge("mae_ready", "1 while new work is accepted.", registry=registry)
        self.engine_info = Gauge(
            "mae_engine_info",
            "Always 1; the labels say what serves.",
            ["backend", "precision", "device", "model", "weights", "fallback"],
            registry=registry,
        )
        self.lanes = Gauge("mae_lanes", "Batches that can run at once.", registry=registry)
        self.queue_limit = Gauge("mae_queue_limit_images", "QUEUE_IMAGES.", registry=registry)
        self.inflight_limit = Gauge("mae_inflight_limit_bytes", "MAX_INFLIGHT_MB in bytes.", registry=registry)

    def describe_limits(self, queue_images: int, inflight_bytes: int) -> None:
        """Sets the bounds that a queue or a body's bytes are near to or far from."""
        self.queue_limit.set(queue_images)
        self.inflight_limit.set(inflight_bytes)

    def describe_engine(self, info: EngineInfo) -> None:
        """Sets what is known once an engine is there."""
        self.lanes.set(info.lanes)
        self.engine_info.labels(
            backend=info.backend,
            precision=info.precision,
            device=info.device,
            model=info.model,
            weights=info.weights[:12],
            fallback=info.fallback or "",
        ).set(1)

    def read_at_scrape(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Lets `gauge` call `read` whenever it is scraped, so that it cannot drift."""
        gauge.set_function(read)

    def render(self) -> bytes:
        """The exposition in Prometheus' text format. Asks the GPUs' driver: call it in a thread."""
        return generate_latest(self.registry)

    def close(self) -> None:
        """Lets go of the GPUs' driver."""
        self._gpus.close()
