"""The service as replicas of Ray Serve: `serve run service.cluster.serve:app`.

Each replica has the app and the scheduler that `mae serve` has, and an engine of its own. Serve's proxy takes the
connections, and Serve starts, checks, drains and ends replicas. So HOST, PORT and HTTP_WORKERS do not apply, nor does
this project's handling of signals.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from service.api.app import create_app
from service.cluster.cpus import ClaimedCPUs
from service.cluster.metrics import RayExporter
from service.errors import EngineLost
from service.inference.batch_scheduler import LAST_BATCH_S
from service.logs import configure_logging
from service.server import exit_now
from service.service import LocalService
from service.settings import InvalidSettings, Settings, load_settings
from service.tracing.configuration import load_tracer

GPU_LANES, GPU_BATCH, CPU_BATCH = 2, 64, 16
"""Lanes and batches that engines take by default, at most: what is measured on a CPU is seldom larger."""
HEALTH_CHECK_S = 5.0
POLL_S = 0.05


class ReplicaOptions(BaseModel):
    """What `serve run service.cluster.serve:app NAME=VALUE …` takes, or `args` in Serve's YAML."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    num_cpus: float = Field(default=2, ge=0)
    """CPUs of each replica; its engine and its decoding keep to as many."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs of each replica; 0.5: two replicas share a GPU."""
    min_replicas: int = Field(default=1, ge=0)
    """Least number of replicas."""
    max_replicas: int = Field(default=8, ge=1)
    """Largest number of replicas."""
    max_ongoing_requests: int | None = Field(default=None, ge=1)
    """Requests that a replica has at a time; by default two batches for each lane, or batches would not fill."""
    max_queued_requests: int = Field(default=512, ge=-1)
    """Requests that wait in each proxy for a replica; Serve answers 503 beyond that. -1: no limit."""
    target_ongoing_requests: float | None = Field(default=None, gt=0)
    """Requests per replica that the autoscaler aims at; by default one batch for each lane."""
    upscale_delay_s: float = Field(default=10, ge=0)
    """Seconds of load before replicas are added."""
    downscale_delay_s: float = Field(default=300, ge=0)
    """Seconds without load before replicas are removed."""


def app(options: ReplicaOptions | dict[str, Any]) -> serve.Application:
    """The application, for `serve run` and for `import_path` in Serve's YAML; settings are read from the environment.

    Args:
        options: a mapping where Serve calls this; its values are text where `serve run` does.

    Raises:
        InvalidSettings: a setting is not valid, or HTTP_WORKERS is set.
        ValidationError: an option is not valid.
    """
    return build_application(load_settings(), ReplicaOptions.model_validate(options), build_app)


def build_application(settings: Settings, options: ReplicaOptions, build: Callable[[], FastAPI]) -> serve.Application:
    """The application whose replicas serve what `build` makes, a function that runs in each replica."""
    if settings.http_workers:
        raise InvalidSettings("HTTP_WORKERS: Ray Serve has proxies of its own, so workers cannot be added under it")
    batches = _images_in_batches(settings, options)
    deployment = serve.deployment(
        serve.ingress(build)(Mae),
        name="Mae",
        max_ongoing_requests=options.max_ongoing_requests or 2 * batches,
        max_queued_requests=options.max_queued_requests,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "initial_replicas": max(1, options.min_replicas),
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.target_ongoing_requests or batches,
            "upscale_delay_s": options.upscale_delay_s,
            "downscale_delay_s": options.downscale_delay_s,
        },
        # A replica that ends gets no new requests, and has this time for those that it has.
        graceful_shutdown_timeout_s=settings.drain_timeout_s + LAST_BATCH_S,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_CHECK_S,
        max_constructor_retry_count=3,  # weights that cannot be read stay so
        logging_config={"enable_access_log": False},  # the app logs its requests
    )
    return deployment.bind()


def build_app() -> FastAPI:
    """The app of one replica, by the settings in its environment."""
    # Before anything counts the CPUs. The object lives as long as the app does, and its locks with it.
    claimed = ClaimedCPUs(ray.get_runtime_context().get_assigned_resources().get("CPU", 0))
    settings = load_settings()
    configure_logging(settings.log_format)
    served = create_app(service=LocalService(settings, tracer=load_tracer()))
    served.state.claimed_cpus = claimed
    return served


class Mae:
    """A replica. Serve calls the app, and asks this object whether the replica may get requests."""

    app: FastAPI
    """Set by `serve.ingress`, and started after that."""

    def __init__(self) -> None:
        """Nothing is loaded yet."""
        self._is_watched = False

    async def check_health(self) -> None:
        """Waits until the engine is loaded: Serve counts a replica as ready after its first check.

        Raises:
            EngineLost: the engine cannot be loaded, or is lost; Serve replaces the replica.
        """
        service: LocalService = self.app.state.service
        while service.state == "loading":
            await asyncio.sleep(POLL_S)
        if service.state == "lost":
            raise EngineLost(service.progress)
        if not self._is_watched:
            self._is_watched = True
            RayExporter(service.metrics.registry).start()
            service.subscribe(lambda: _end_with(service))


def _end_with(service: LocalService) -> None:
    """Ends the process of a replica whose engine is lost: Serve sees that sooner than it asks for the health."""
    if service.exit_code:
        exit_now(service.exit_code)


def _images_in_batches(settings: Settings, options: ReplicaOptions) -> int:
    """The images that are in the batches of all lanes at once, as far as it is known before an engine is loaded."""
    if options.num_gpus:
        return (settings.lanes or GPU_LANES) * (settings.max_batch or GPU_BATCH)
    return (settings.lanes or max(1, math.ceil(options.num_cpus))) * (settings.max_batch or CPU_BATCH)
