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
from service.api.responses import JSON, json_bytes, preferred_type
from service.api.schemas import Embeddings, error_answers, request_body
from service.inference.embedding import EmbeddingPlan
from service.parameters import EmbedParameters

router = APIRouter(tags=["inference"], route_class=InferenceRoute)
NPY = "application/x-npy"
# Above this, writing the answer takes longer than a turn of the event loop may.
LARGE = 50_000


@router.post(
    "/embed",
    response_model=Embeddings,
    responses={
        200: {"content": {NPY: {"schema": {"type": "string", "format": "binary"}}}},
        **error_answers(400, 401, 413, 415, 422, 429, 500, 503, 504),
    },
    openapi_extra=request_body(with_mask=False),
)
async def embed(request: Request, parameters: Annotated[EmbedParameters, Query()]) -> Response:
    """Turns each image into a vector (or, with `pool=tokens`, into a vector a patch)."""
    media_type = preferred_type(request.headers.get("accept", ""), (JSON, NPY))
    intake = RequestContext(request)
    pipeline = intake.pipeline
    plan = EmbeddingPlan.of(parameters, pipeline.info, pipeline.heads)
    payload = await intake.payload()
    rows = await intake.attended(
        pipeline.embed(payload.images, plan.pool, plan.visible_indices, intake.record.timings, intake.deadline)
    )

    def answer() -> bytes:
        vectors = plan.finish(rows)
        if media_type == NPY:
            return npy(vectors)
        return json_bytes(_content(pipeline.info, parameters, vectors, plan))

    large = len(rows) * rows[0].size > LARGE
    body = await pipeline.render(answer, intake.record.timings) if large else answer()
    headers = {"x-mae-model": pipeline.info.model_id} | ({} if plan.seed is None else {"x-mae-seed": str(plan.seed)})
    return Response(body, headers=headers, media_type=media_type)


def npy(array: NDArray[Any]) -> bytes:
    """`array` as NumPy writes it to a file."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _content(info: EngineInfo, parameters: EmbedParameters, vectors: Floats, plan: EmbeddingPlan) -> dict[str, Any]:
    content: dict[str, Any] = {
        "model": info.model_id,
        "pool": parameters.pool,
        "dim": vectors.shape[-1],
        "count": len(vectors),
        "embeddings": vectors if parameters.encoding == "float" else [base64_floats(vector) for vector in vectors],
    }
    if parameters.pool == "tokens":
        content["grid"] = (info.config.grid, info.config.grid)
        if plan.seed is not None:
            content["positions"] = plan.visible_indices
    if plan.seed is not None:
        content["seed"] = plan.seed
    if parameters.whiten:
        content["whitened"] = True
    return content


def base64_floats(vector: Floats) -> str:
    """Little-endian float32 in base64, as OpenAI's `encoding_format`."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
