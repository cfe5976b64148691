"""What Prometheus reads, by prometheus-client's own parser."""

import re
from importlib.metadata import version

import pytest

from service.metrics import Metrics
from service.service import LocalService
from service.settings import Settings
from tests.support.engines import fake_info
from tests.support.metrics import families, samples


def values(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples(metrics.render())}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return values(metrics)[name, frozenset(labels.items())]


def test_the_names_that_dashboards_are_built_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # those of GPUs are in test_gpu.py
    exported = families(Metrics().render())
    kinds = {
        "mae_requests": "counter",
        "mae_request_duration_seconds": "histogram",
        "mae_processing_duration_seconds": "histogram",
        "mae_stage_duration_seconds": "histogram",
        "mae_images": "counter",
        "mae_batch_size": "histogram",
        "mae_open_inference_requests": "counter",
        "mae_open_inference_images": "counter",
        "mae_open_inference_seconds": "counter",
        "mae_rejected": "counter",
        "mae_dropped_images": "counter",
        "mae_degraded_images": "counter",
        "mae_ignored_profiles": "counter",
        "mae_cache_hits": "counter",
        "mae_cache_misses": "counter",
        "mae_cache_evictions": "counter",
        "mae_cache_bytes": "gauge",
        "mae_index_rows": "gauge",
        "mae_searching_images": "gauge",
        "mae_engine_failures": "counter",
        "mae_slow_batches": "counter",
        "mae_drift_samples": "counter",
        "mae_drift_loss": "histogram",
        "mae_drift_distance": "histogram",
        "mae_queue_images": "gauge",
        "mae_admitted_images": "gauge",
        "mae_lanes_busy": "gauge",
        "mae_inflight_bytes": "gauge",
        "mae_inflight_requests": "gauge",
        "mae_ready": "gauge",
        "mae_engine_info": "gauge",
        "mae_build_info": "gauge",
        "mae_lanes": "gauge",
        "mae_queue_limit_images": "gauge",
        "mae_inflight_limit_bytes": "gauge",
    }
    ours = {name for name in exported if name.startswith("mae_")}
    assert {name: exported[name].type for name in ours} == kinds  # type: ignore[attr-defined]
    assert all(family.documentation for family in exported.values())  # type: ignore[attr-defined]
    assert "process_resident_memory_bytes" in exported
    assert "python_info" in exported


def test_alerts_can_see_the_first_failure_and_how_near_a_bound_is() -> None:
    metrics = LocalService(Settings(queue_images=7, max_inflight_mb=64)).metrics
    assert value(metrics, "mae_engine_failures_total", kind="raised") == 0
    assert value(metrics, "mae_engine_failures_total", kind="not_finite") == 0
    assert value(metrics, "mae_queue_limit_images") == 7
    assert value(metrics, "mae_inflight_limit_bytes") == 64e6


def test_every_help_text_names_the_unit() -> None:
    for name, family in families(Metrics().render()).items():
        if name.startswith("mae_") and not name.startswith("mae_gpu_"):
            assert re.search(r"(?i)\bnumber of\b|, in (seconds|bytes)\b|without a unit", family.documentation), name  # type: ignore[attr-defined]


def test_the_version_is_exported() -> None:
    assert value(Metrics(), "mae_build_info", version=version("mae-serve")) == 1


def test_two_services_in_one_process_do_not_mix() -> None:
    one, other = Metrics(), Metrics()
    one.lanes.set(3)
    assert (value(one, "mae_lanes"), value(other, "mae_lanes")) == (3, 0)


def test_the_engine_is_described() -> None:
    metrics = Metrics()
    info = fake_info(lanes=2).model_copy(update={"weights": "0123456789abcdef" * 4, "fallback": "no GPU"})
    metrics.describe_engine(info)
    labels = {"backend": "torch", "precision": "fp32", "device": "cpu", "model": "fake", "fallback": "no GPU"}
    assert value(metrics, "mae_engine_info", **labels, weights="0123456789ab") == 1
    assert value(metrics, "mae_lanes") == 2


def test_gauges_are_read_when_they_are_scraped() -> None:
    metrics, queue = Metrics(), [1, 2]
    metrics.read_at_scrape(metrics.queue_images, lambda: len(queue))
    assert value(metrics, "mae_queue_images") == 2
    queue.append(3)
    assert value(metrics, "mae_queue_images") == 3


def test_a_batch_as_large_as_can_be_has_a_bucket_of_its_own() -> None:
    metrics = Metrics()
    for size in (1, 4, 33):
        metrics.batch_size.labels("embed").observe(size)
    counts = {
        float(dict(labels)["le"]): count
        for (name, labels), count in values(metrics).items()
        if name == "mae_batch_size_bucket"
    }
    assert (counts[1], counts[2], counts[4], counts[32], counts[64]) == (1, 1, 2, 2, 3)
