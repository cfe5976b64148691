"""POST /embed: images -> vectors."""

from __future__ import annotations

import io
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray

from model.engines.base import EngineInfo
from service.api.base64_text import encode_base64
from service.api.error_schemas import INFERENCE_ERRORS, error_responses
from service.api.fast_path import InferenceRoute
from service.api.request import RequestContext
from service.api.responses import JSON, LARGE, describe_skipped, header_value, json_bytes, preferred_type, with_gaps
from service.api.schemas import BINARY, Embeddings, request_body
from service.errors import ServiceError
from service.inference.dtypes import TypedVectors, convert_vectors
from service.inference.embedding import EmbeddingPlan, embed_images
from service.inference.vector_space import space_of
from service.parameters import DType, EmbedParameters

router = APIRouter(tags=["inference"], route_class=InferenceRoute)
NPY, BYTES = "application/x-npy", "application/octet-stream"


@router.post(
    "/embed",
    summary="Turn images into vectors",
    response_description="One vector per image, in the order of the images; or with `pool=tokens` one per patch.",
    response_model=Embeddings,
    responses={
        200: {"content": {NPY: BINARY, BYTES: BINARY}},
        **error_responses(*INFERENCE_ERRORS),
    },
    openapi_extra=request_body(mask="white patches are encoded, the opposite of /reconstruct"),
)
async def embed(request: Request, parameters: Annotated[EmbedParameters, Query()]) -> Response:
    """Turns each image into a vector, or with `pool=tokens` into one vector per encoded patch.

    With `patches` or a mask picture, a region is embedded: only the patches that are named, or that are more than half
    white in the picture, are encoded. On /reconstruct the same patches would be removed.
    """
    context = RequestContext(request)
    pipeline, timings = context.pipeline, context.record.timings
    plan = EmbeddingPlan.of(parameters, pipeline.info, pipeline.heads)
    skips = parameters.on_error == "skip"
    media_type = preferred_type(request.headers.get("accept", ""), _media_types(parameters))
    body = await context.read_body(takes_mask=True, skips=skips)
    skipped = body.errors if skips else None
    if body.mask is not None:
        plan = plan.with_mask(body.mask, len(body.images))

    async def work() -> Response:
        vectors, done = await embed_images(pipeline, context.images_to_infer(body.images, skipped), plan)
        context.record.images = len(vectors)

        def write() -> Response:
            typed = convert_vectors(done.finish(vectors), parameters.dtype)
            headers = embedding_headers(pipeline.info, done)
            if media_type == JSON:
                content = json_bytes(embeddings_content(pipeline.info, done, typed, skipped))
            else:
                headers |= _array_headers(typed, parameters.dtype, media_type)
                content = npy_bytes(typed.numbers) if media_type == NPY else little_endian(typed.numbers)
            return Response(content, headers=headers, media_type=media_type)

        large = len(vectors) * vectors[0].size > LARGE
        return await pipeline.render(write, timings) if large else write()

    return await context.run_while_client_waits(work())


def _media_types(parameters: EmbedParameters) -> tuple[str, ...]:
    """The types of the answer that a request may have; the first is the default."""
    if parameters.on_error == "skip" or (parameters.pool == "tokens" and parameters.dtype == "int8"):
        return (JSON,)  # it has a place for gaps, and for the scales of all tokens
    return (JSON, NPY, BYTES)


def embedding_headers(info: EngineInfo, plan: EmbeddingPlan) -> dict[str, str]:
    """The headers of every answer: what was encoded, and how."""
    headers = {
        "x-mae-model": header_value(info.model_id),
        "x-mae-space": space_of(info, plan.parameters),
        "x-mae-keep": f"{plan.keep(info.config):.6g}",
    }
    if plan.seed is not None:
        headers["x-mae-seed"] = str(plan.seed)
    return headers


def _array_headers(typed: TypedVectors, dtype: DType, media_type: str) -> dict[str, str]:
    """The headers of an answer that is one array: what its bytes do not say themselves."""
    headers = {}
    if media_type == BYTES:
        headers["x-mae-shape"] = ",".join(map(str, typed.numbers.shape))
        headers["x-mae-dtype"] = dtype
    if typed.scales is not None:
        headers["x-mae-scales"] = ",".join(f"{scale:.9g}" for scale in typed.scales)
    return headers


def npy_bytes(array: NDArray[Any]) -> bytes:
    """`array` as a .npy file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def embeddings_content(
    info: EngineInfo, plan: EmbeddingPlan, typed: TypedVectors, skipped: dict[int, ServiceError] | None
) -> dict[str, Any]:
    """The response as JSON: `Embeddings`. Other protocols take its `embeddings` and `errors` for their own answers."""
    parameters, numbers = plan.parameters, typed.numbers
    vectors = numbers if parameters.encoding == "float" else [base64_numbers(image) for image in numbers]
    content: dict[str, Any] = {
        "model": info.model_id,
        "space": space_of(info, parameters),
        "precision": info.computes,
        "normalized": parameters.normalize,
        "keep": plan.keep(info.config),
        "pool": parameters.pool,
        "dim": plan.dim(info.config),
        "count": len(numbers) + len(skipped or ()),
        "embeddings": with_gaps(vectors, skipped) if skipped else vectors,
    }
    if parameters.pool == "tokens":
        content["grid"] = (info.config.grid, info.config.grid)
    if plan.is_region or (parameters.pool == "tokens" and plan.seed is not None):
        content["positions"] = plan.visible_indices
    if plan.seed is not None:
        content["seed"] = plan.seed
    if parameters.whitens:
        content["whitened"] = True
    if plan.explained_variance is not None:
        content["explained_variance"] = plan.explained_variance
    if parameters.dtype != "float32":
        content["dtype"] = parameters.dtype
    if typed.scales is not None:
        content["scales"] = with_gaps(typed.scales, skipped) if skipped else typed.scales
    if skipped is not None:
        content["errors"] = describe_skipped(skipped)
    return content


def base64_numbers(array: NDArray[Any]) -> str:
    """The bytes of `array` in base64, like OpenAI's `encoding_format`."""
    return encode_base64(little_endian(array))


def little_endian(array: NDArray[Any]) -> bytes:
    """The numbers of `array` in row-major order, each with its lowest byte first."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
