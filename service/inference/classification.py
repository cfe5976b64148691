"""Requests for classifications: the probabilities of the head's classes, for routes and commands alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from model.arrays import Floats
from model.checkpoints.heads import POOL_INDEX
from model.masking import all_indices
from service.inference.images import ImageRequest
from service.inference.passes import Inference
from service.inference.pipeline import Pipeline


async def classify_images(pipeline: Pipeline, request: ImageRequest) -> list[Floats]:
    """Classifies images by the model's head.

    Whole images are embedded, in batches with all other embeddings. The head runs here, image by image, so that an
    image's probabilities have the same bits with any other images in the request.

    Returns:
        The classes' probabilities per image that is not left out, float32 [C], in the order of the head's classes.

    Raises:
        NoHead: the model has no classification head.
        ServiceError: an image is refused, the queue is full, or the engine has failed.
    """
    head = pipeline.head
    pool = POOL_INDEX[head.config.pool]
    results = await pipeline.infer(request, Inference("embed", (all_indices(pipeline.info.config.num_patches),)))
    vectors = [image.vectors[0][pool] for image in results]
    return await pipeline.render(lambda: [head.probabilities(vector[None])[0] for vector in vectors], request.timings)


def most_probable(probabilities: Floats, labels: tuple[str, ...], top_k: int) -> list[dict[str, Any]]:
    """The `top_k` classes with the largest of `probabilities`, float32 [C], in descending order; ties by index."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [{"label": labels[index], "probability": probabilities[index]} for index in order]
