"""The service's engine and pipeline for a command, without a server."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rich.console import Console

from model.engines.base import ServedModel
from service.errors import ServiceError
from service.inference.image_decoder import ImageDecoder
from service.inference.pipeline import Pipeline
from service.inference.scheduler import BatchScheduler
from service.metrics import Metrics
from service.settings import Settings

ONLY_IMAGE = "image 0"


def build_engine(settings: Settings) -> ServedModel:
    """The engine of `settings`, past the parity gate; a terminal shows what is being done.

    Raises:
        WeightsError, EngineBuildError: as `model.engines.build.build`.
    """
    from model.engines.build import build

    logging.basicConfig(level=logging.WARNING, format="mae: %(message)s")
    logging.captureWarnings(True)
    if not sys.stderr.isatty():
        return build(settings.engine, logging.getLogger(__name__).info)
    with Console(stderr=True).status("loading the engine") as status:
        return build(settings.engine, status.update)


@asynccontextmanager
async def pipeline_of(served: ServedModel, settings: Settings, most_images: int) -> AsyncIterator[Pipeline]:
    """A pipeline as the service has one, for at most `most_images` images at once."""
    metrics = Metrics()
    engine, info = served.engine, served.info
    decoder = ImageDecoder(info.config, info.preprocessing, settings.max_pixels, settings.decode_threads)
    batcher = BatchScheduler(engine, metrics, most_images)
    batcher.start()
    try:
        yield Pipeline(info, served.heads, decoder, batcher, metrics)
    finally:
        batcher.stop()
        decoder.close()


def said_of(path: str, error: OSError | ServiceError) -> str:
    """What is wrong, said of a file where the service speaks of the only image of a request."""
    text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return text.replace(ONLY_IMAGE, path, 1) if ONLY_IMAGE in text else f"{path}: {text}"
