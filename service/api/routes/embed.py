"""POST /embed: images -> vectors."""

from __future__ import annotations

import base64
import io
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray

from model.arrays import Floats
from model.engines.base import EngineInfo
from service.api.fast_path import InferenceRoute
from service.api.request import RequestContext
from service.api.responses import JSON, describe_skipped, header_value, json_bytes, preferred_type, with_gaps
from service.api.schemas import INFERENCE_ERRORS, Embeddings, error_responses, request_body
from service.errors import ServiceError
from service.inference.embedding import EmbeddingPlan, space_of
from service.parameters import EmbedParameters

router = APIRouter(tags=["inference"], route_class=InferenceRoute)
NPY = "application/x-npy"
# A response of more numbers than this is written in the pool, because it would block the event loop for too long.
LARGE = 50_000


@router.post(
    "/embed",
    summary="Turn images into vectors",
    response_description="One vector per image, in the order of the images; or with `pool=tokens` one per patch.",
    response_model=Embeddings,
    responses={
        200: {"content": {NPY: {"schema": {"type": "string", "format": "binary"}}}},
        **error_responses(*INFERENCE_ERRORS),
    },
    openapi_extra=request_body(with_mask=False),
)
async def embed(request: Request, parameters: Annotated[EmbedParameters, Query()]) -> Response:
    """Turns each image into a vector, or with `pool=tokens` into one vector per encoded patch."""
    context = RequestContext(request)
    pipeline, timings = context.pipeline, context.record.timings
    plan = EmbeddingPlan.of(parameters, pipeline.info, pipeline.heads)
    space = space_of(pipeline.info, parameters)
    skips = parameters.on_error == "skip"
    media_type = preferred_type(request.headers.get("accept", ""), (JSON,) if skips else (JSON, NPY))
    body = await context.read_body(skips=skips)
    skipped = body.errors if skips else None

    async def work() -> bytes:
        vectors = await pipeline.embed(body.images, plan.pool, plan.visible_indices, timings, context.deadline, skipped)
        context.record.images = len(vectors)

        def write() -> bytes:
            embeddings = plan.finish(vectors)
            if media_type == NPY:
                return npy_bytes(embeddings)
            return json_bytes(_content(pipeline.info, parameters, embeddings, plan, space, skipped))

        large = len(vectors) * vectors[0].size > LARGE
        return await pipeline.render(write, timings) if large else write()

    content = await context.run_while_client_waits(work())
    headers = {"x-mae-model": header_value(pipeline.info.model_id), "x-mae-space": space}
    if plan.seed is not None:
        headers["x-mae-seed"] = str(plan.seed)
    return Response(content, headers=headers, media_type=media_type)


def npy_bytes(array: NDArray[Any]) -> bytes:
    """`array` as a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _content(
    info: EngineInfo,
    parameters: EmbedParameters,
    embeddings: Floats,
    plan: EmbeddingPlan,
    space: str,
    skipped: dict[int, ServiceError] | None,
) -> dict[str, Any]:
    """The response as JSON: `Embeddings`."""
    vectors = embeddings if parameters.encoding == "float" else [base64_floats(image) for image in embeddings]
    content: dict[str, Any] = {
        "model": info.model_id,
        "space": space,
        "precision": info.computes,
        "normalized": parameters.normalize,
        "keep": parameters.keep,
        "pool": parameters.pool,
        "dim": embeddings.shape[-1],
        "count": len(embeddings) + len(skipped or ()),
        "embeddings": with_gaps(vectors, skipped) if skipped else vectors,
    }
    if parameters.pool == "tokens":
        content["grid"] = (info.config.grid, info.config.grid)
        if plan.seed is not None:
            content["positions"] = plan.visible_indices
    if plan.seed is not None:
        content["seed"] = plan.seed
    if parameters.whiten:
        content["whitened"] = True
    if skipped is not None:
        content["errors"] = describe_skipped(skipped)
    return content


def base64_floats(array: Floats) -> str:
    """`array` as little-endian float32 in base64, like OpenAI's `encoding_format`."""
    return base64.b64encode(array.astype("<f4").tobytes()).decode("ascii")
