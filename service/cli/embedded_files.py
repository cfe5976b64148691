"""Vectors of image files for commands that keep or compare them in this process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import NamedTuple

from model.arrays import Floats
from model.engines.base import ServedModel
from service.cli.image_files import SkippedFile, most_images_at_once, run_pipeline
from service.cli.local_pipeline import open_pipeline
from service.index.thumbnails import encode_thumbnail
from service.inference.embedding import EmbeddingPlan, embed_images
from service.inference.images import ImageRequest
from service.inference.pipeline import Pipeline
from service.settings import Settings


class EmbeddedFile(NamedTuple):
    """What is kept of an image."""

    vector: Floats
    """Float32 [D]."""
    thumbnail: bytes | None
    """JPEG, where one was asked for."""


async def embed_files(
    paths: Iterable[str], served: ServedModel, settings: Settings, plan: EmbeddingPlan, thumbnails: bool = False
) -> AsyncGenerator[tuple[str, EmbeddedFile | SkippedFile]]:
    """Embeds images by a plan, many at a time; yields the paths and the vectors in the order of the paths.

    Raises:
        EngineLost: the engine cannot go on.
    """
    max_images = most_images_at_once(served.info, settings)
    async with open_pipeline(served, settings, max_images) as pipeline:
        embed_image = _embedder(pipeline, plan, settings.max_pixels if thumbnails else None)
        async with aclosing(run_pipeline(pipeline, paths, embed_image, max_images)) as results:
            async for path, result in results:
                yield path, result


def _embedder(
    pipeline: Pipeline, plan: EmbeddingPlan, thumbnail_pixels: int | None
) -> Callable[[bytes], Awaitable[EmbeddedFile]]:
    async def embed_image(data: bytes) -> EmbeddedFile:
        vectors, _ = await embed_images(pipeline, ImageRequest([data]), plan)
        thumbnail = None
        if thumbnail_pixels is not None:
            thumbnail = await pipeline.run_in_pool(encode_thumbnail, data, thumbnail_pixels)
        return EmbeddedFile(plan.finish(vectors)[0], thumbnail)

    return embed_image
