"""The statistics of the models, as Triton has them, out of the metrics of the whole service."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from service.api.open_inference.models import VERSION
from service.inference.timings import Timings
from service.metrics import Metrics

STAGES = {"success": "total", "fail": "fail", "queue": "queue", "compute_input": "decode", "compute_infer": "infer"}
STAGES["compute_output"] = "render"
"""The stages of the metrics by the protocol's name of their statistics."""
OPERATIONS = {"embed": "embed", "tokens": "tokens", "classify": "embed", "reconstruct": "reconstruct"}
"""The operation of the engine that each model needs."""


def count_success(metrics: Metrics, model: str, images: int, timings: Timings, seconds: float) -> None:
    """Counts a request that was answered after `seconds`."""
    metrics.open_inference_requests.labels(model, "success").inc()
    metrics.open_inference_images.labels(model).inc(images)
    for stage, value in {"total": seconds, **timings.seconds()}.items():
        if stage in STAGES.values():
            metrics.open_inference_seconds.labels(model, stage).inc(value)


def count_failure(metrics: Metrics, model: str, seconds: float) -> None:
    """Counts a request that was refused or failed after `seconds`."""
    metrics.open_inference_requests.labels(model, "fail").inc()
    metrics.open_inference_seconds.labels(model, "fail").inc(seconds)


def statistics(exposition: bytes, models: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """The statistics of models since the start.

    Args:
        exposition: the metrics of the whole service, in Prometheus' text format.
        models: pairs of the name that a model is given here, and its own name.
    """
    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposition.decode())
        for sample in family.samples
    }

    def read(name: str, **labels: str) -> float:
        return values.get((name, tuple(sorted(labels.items()))), 0.0)

    def describe(name: str, model: str) -> dict[str, Any]:
        counts = {
            outcome: int(read("mae_open_inference_requests_total", model=model, outcome=outcome))
            for outcome in ("success", "fail")
        }
        times = {
            statistic: {
                "count": counts["fail" if statistic == "fail" else "success"],
                "ns": int(1e9 * read("mae_open_inference_seconds_total", model=model, stage=stage)),
            }
            for statistic, stage in STAGES.items()
        }
        return {
            "name": name,
            "version": VERSION,
            "inference_count": int(read("mae_open_inference_images_total", model=model)),
            "execution_count": int(read("mae_batch_size_count", operation=OPERATIONS[model])),
            "inference_stats": times,
            "batch_stats": [],
        }

    return {"model_stats": [describe(name, model) for name, model in models]}
