"""Requests for neighbours: images are embedded as those of the index were, and the index tells which are nearest."""

from __future__ import annotations

import time

from service.inference.embedding import EmbeddingPlan, embed_images
from service.inference.images import ImageRequest
from service.inference.pipeline import Pipeline
from service.inference.searcher import Neighbour, Query
from service.parameters import SearchParameters


async def search_images(
    pipeline: Pipeline, request: ImageRequest, parameters: SearchParameters
) -> list[list[Neighbour]]:
    """Finds the images of the index that are nearest to those of a request.

    Returns:
        The neighbours of each image that is not left out, the nearest first.

    Raises:
        NoIndex: the service has none.
        QueueFull: too many images or searches wait.
        DeadlinePassed: the search did not begin in time.
        SearchFailed: the index cannot be read.
        ServiceError: an image is refused, or the engine has failed.
    """
    index, timings = pipeline.index, request.timings
    plan = EmbeddingPlan.of(index.embedding, pipeline.info, pipeline.heads)
    vectors, done = await embed_images(pipeline, request, plan)
    start = time.monotonic()
    with timings.record_span("search"):
        found = await index.search(Query(done.finish(vectors), parameters, request.deadline))
    timings.search += time.monotonic() - start
    return found
