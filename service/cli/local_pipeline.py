"""The service's engine and pipeline inside a command, without a server."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console

from model.engines.base import ServedModel
from service.inference.batch_scheduler import BatchScheduler
from service.inference.decode_memory import DecodeMemory
from service.inference.image_decoder import ImageDecoder
from service.inference.limits import IMAGE, LocalBudget
from service.inference.pipeline import Pipeline
from service.inference.watchdog import Heartbeat, Watchdog, WatchedEngine
from service.metrics import Metrics
from service.settings import Settings


def build_engine(settings: Settings) -> ServedModel:
    """Builds the engine of `settings`, which includes the parity check; a terminal shows the current step.

    Raises:
        WeightsError: the weights cannot be read.
        EngineBuildError: the engine cannot be built, or fails the parity check.
    """
    from model.engines.build import build

    logging.basicConfig(level=logging.WARNING, format="mae: %(message)s")
    logging.captureWarnings(True)
    if not sys.stderr.isatty():
        return build(settings.engine, logging.getLogger(__name__).info)
    with Console(stderr=True).status("loading the engine") as status:
        return build(settings.engine, status.update)


@asynccontextmanager
async def open_pipeline(served: ServedModel, settings: Settings, max_images: int) -> AsyncIterator[Pipeline]:
    """The service's pipeline around `served`, for at most `max_images` images at the same time.

    A batch that does not return ends every image with `EngineLost`.
    """
    metrics = Metrics()
    info = served.info
    decoder = ImageDecoder(
        info.config,
        info.preprocessing,
        settings.max_pixels,
        DecodeMemory(LocalBudget(settings.max_decode_bytes)),
        metrics.ignored_profiles.inc,
    )
    watchdog = Watchdog(served.image_seconds, metrics.slow_batches.inc)
    scheduler = BatchScheduler(WatchedEngine(served.engine, watchdog), metrics, LocalBudget(max_images * IMAGE))
    scheduler.start()
    heartbeat = Heartbeat(watchdog, scheduler.lose)
    pipeline = Pipeline(info, served.heads, decoder, scheduler, metrics, settings.decode_threads)
    heartbeat.start()
    try:
        yield pipeline
    finally:
        heartbeat.stop()
        pipeline.close()
