"""The Prometheus metrics of the service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version

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
from prometheus_client.core import Metric

from model.engines.base import EngineInfo
from service.gpu_metrics import GPUCollector

SECONDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32)
CREATED = "_created"
"""The ending of the samples by which prometheus-client tells when a counter began."""
# Measured by tests/benchmarks/drift.py: losses from 0.02 (paper under a lamp) and 0.05 (microscope) over 0.4 to 0.7
# (photographs) to 1.7 (noise), and distances from 0.6 (photographs of the fit) to 2.6 (noise, one grey).
LOSSES = (0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.5, 2, 4)
DISTANCES = (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.35, 1.5, 1.75, 2, 2.5, 3, 4, 6)
POWERS_OF_TWO = tuple(2**n for n in range(11))


class _Registry(CollectorRegistry):
    """A registry without the times of creation, of which nobody makes use: they would double the series."""

    def collect(self) -> Iterator[Metric]:
        """All families."""
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith(CREATED)]
            yield family


class Metrics:
    """The metrics of one service, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        """Registers all metrics: of the service, of the process, and of the GPUs if there are any."""
        registry = self.registry = _Registry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._gpus = GPUCollector()
        registry.register(self._gpus)
        self.requests = Counter(
            "mae_requests",
            "Number of requests answered, by endpoint and HTTP status; 499: the client closed the connection.",
            ["endpoint", "code"],
            registry=registry,
        )
        self.request_duration = Histogram(
            "mae_request_duration_seconds",
            "Time from the headers of a request to the last byte of its response, in seconds.",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self.processing_duration = Histogram(
            "mae_processing_duration_seconds",
            "Time from the last byte of a request to the last byte of its response, in seconds.",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self.stage_duration = Histogram(
            "mae_stage_duration_seconds",
            "Time of an image in a stage, in seconds; read (its whole body), decode, queue, infer (its batch),"
            " search (for all images of its request), render.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.images = Counter(
            "mae_images",
            "Number of images in requests that were answered with status 200.",
            ["endpoint"],
            registry=registry,
        )
        self.batch_size = Histogram(
            "mae_batch_size", "Number of images in a batch.", ["operation"], buckets=POWERS_OF_TWO, registry=registry
        )
        self.open_inference_requests = Counter(
            "mae_open_inference_requests",
            "Number of requests by the Open Inference Protocol, by model and outcome: success or fail.",
            ["model", "outcome"],
            registry=registry,
        )
        self.open_inference_images = Counter(
            "mae_open_inference_images",
            "Number of images in requests by the Open Inference Protocol that were answered, by model.",
            ["model"],
            registry=registry,
        )
        self.open_inference_seconds = Counter(
            "mae_open_inference_seconds",
            "Time of requests by the Open Inference Protocol, in seconds, by model and stage; total (from the headers"
            " to the answer), decode, queue, infer, render, and fail (of those that were refused or failed).",
            ["model", "stage"],
            registry=registry,
        )
        self.rejected = Counter(
            "mae_rejected", "Number of requests answered with an error, by its code.", ["reason"], registry=registry
        )
        self.dropped = Counter(
            "mae_dropped_images",
            "Number of images that were admitted but dropped before they entered a batch, by reason.",
            ["reason"],
            registry=registry,
        )
        self.degraded_images = Counter(
            "mae_degraded_images",
            "Number of images of which fewer patches than keep were encoded under load, as min_keep allows.",
            registry=registry,
        )
        self.ignored_profiles = Counter(
            "mae_ignored_profiles",
            "Number of images whose colour profile could not be used: it is damaged, too large or for other pixels.",
            registry=registry,
        )
        self.cache_hits = Counter(
            "mae_cache_hits", "Number of images whose result was in the cache.", registry=registry
        )
        self.cache_misses = Counter(
            "mae_cache_misses",
            "Number of images that were looked up and whose result was not in the cache.",
            registry=registry,
        )
        self.cache_evictions = Counter(
            "mae_cache_evictions",
            "Number of results that were dropped from the cache to make room for others.",
            registry=registry,
        )
        self.engine_failures = Counter(
            "mae_engine_failures",
            "Number of failures of the engine: batches that raised an error, and images whose output was not finite.",
            ["kind"],
            registry=registry,
        )
        # Exported from 0 on: increase() misses the first failure of a counter that starts at 1.
        for kind in ("raised", "not_finite"):
            self.engine_failures.labels(kind)
        self.slow_batches = Counter(
            "mae_slow_batches",
            "Number of batches that took more than a second and ten times as long as at the start.",
            registry=registry,
        )
        self.drift_samples = Counter(
            "mae_drift_samples",
            "Number of images that DRIFT_SAMPLE chose: measured, dropped (the lanes had no time) or failed.",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("measured", "dropped", "failed"):
            self.drift_samples.labels(outcome)
        self.drift_loss = Histogram(
            "mae_drift_loss",
            "Masked loss of sampled images at a mask ratio of 0.75, without a unit: pixels are standardised.",
            buckets=LOSSES,
            registry=registry,
        )
        self.drift_distance = Histogram(
            "mae_drift_distance",
            "Distance of sampled images from the whitening's centre, without a unit; about 1 for images of its fit.",
            buckets=DISTANCES,
            registry=registry,
        )
        self.queue_images = Gauge(
            "mae_queue_images", "Number of images that wait in the queue for a batch.", registry=registry
        )
        self.admitted_images = Gauge(
            "mae_admitted_images",
            "Number of images that are admitted and not yet in a batch, decoded or not; QUEUE_IMAGES limits them. With"
            " min_keep an image may count as a share of an image.",
            registry=registry,
        )
        self.cache_bytes = Gauge(
            "mae_cache_bytes", "Size of the results in the cache, in bytes; CACHE_MB limits it.", registry=registry
        )
        self.index_rows = Gauge(
            "mae_index_rows",
            "Number of images in the index, as of the last search; 0 without an index.",
            registry=registry,
        )
        self.searching_images = Gauge(
            "mae_searching_images",
            "Number of images whose neighbours are searched in the index now, those that wait for it included;"
            " QUEUE_IMAGES limits it.",
            registry=registry,
        )
        self.lanes_busy = Gauge(
            "mae_lanes_busy",
            "Number of lanes that run a batch now; a batch on the joined lane counts as all lanes.",
            registry=registry,
        )
        self.inflight_bytes = Gauge(
            "mae_inflight_bytes",
            "Size of request bodies in memory, in bytes; MAX_INFLIGHT_MB limits it.",
            registry=registry,
        )
        self.inflight_requests = Gauge(
            "mae_inflight_requests", "Number of inference requests that are being answered.", registry=registry
        )
        self.ready = Gauge(
            "mae_ready", "1 while the service accepts requests, else 0; without a unit.", registry=registry
        )
        self.engine_info = Gauge(
            "mae_engine_info",
            "Always 1, without a unit; the labels describe the engine that serves.",
            ["backend", "precision", "device", "model", "weights", "fallback"],
            registry=registry,
        )
        build_info = Gauge(
            "mae_build_info", "Always 1, without a unit; the label is the version.", ["version"], registry=registry
        )
        build_info.labels(version("mae-serve")).set(1)
        self.build_info = build_info
        self.lanes = Gauge(
            "mae_lanes", "Number of lanes of the engine: batches that can run at the same time.", registry=registry
        )
        self.queue_limit = Gauge(
            "mae_queue_limit_images",
            "Limit of mae_admitted_images, as a number of images: the setting QUEUE_IMAGES.",
            registry=registry,
        )
        self.inflight_limit = Gauge(
            "mae_inflight_limit_bytes",
            "Limit of mae_inflight_bytes, in bytes: the setting MAX_INFLIGHT_MB.",
            registry=registry,
        )

    def describe_limits(self, queue_images: int, inflight_bytes: int) -> None:
        """Exports the limits, so that alerts can compare the queue and the bytes of bodies with them."""
        self.queue_limit.set(queue_images)
        self.inflight_limit.set(inflight_bytes)

    def describe_engine(self, info: EngineInfo) -> None:
        """Exports the number of lanes and the labels of the loaded engine."""
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
        """Makes every scrape of `gauge` call `read`, so that the gauge cannot drift from the value."""
        gauge.set_function(read)

    def render(self) -> bytes:
        """All metrics in Prometheus' text format. Call it in a thread, because it waits for the GPUs' driver."""
        return generate_latest(self.registry)

    def close(self) -> None:
        """Closes the connection to the GPUs' driver."""
        self._gpus.close()
