"""POST /classify: images -> the likeliest classes of the model's head."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from model.arrays import Floats
from service.api.fast_path import InferenceRoute
from service.api.request import RequestContext
from service.api.responses import JSON, json_response, preferred_type
from service.api.schemas import Classifications, error_answers, request_body
from service.parameters import ClassifyParameters

router = APIRouter(tags=["inference"], route_class=InferenceRoute)


@router.post(
    "/classify",
    response_model=Classifications,
    responses=error_answers(400, 401, 404, 406, 413, 415, 422, 429, 500, 503, 504),
    openapi_extra=request_body(with_mask=False),
)
async def classify(request: Request, parameters: Annotated[ClassifyParameters, Query()]) -> Response:
    """Names the likeliest classes of each image, for a model with a classification head."""
    preferred_type(request.headers.get("accept", ""), (JSON,))
    intake = RequestContext(request)
    pipeline = intake.pipeline
    labels = pipeline.head.config.classes  # before the body is read: without a head there is nothing to read it for
    payload = await intake.payload()
    found = await intake.attended(pipeline.classify(payload.images, intake.record.timings, intake.deadline))
    content = {
        "model": pipeline.info.model_id,
        "count": len(found),
        "classifications": [{"classes": likeliest(row, labels, parameters.top_k)} for row in found],
    }
    return json_response(content, headers={"x-mae-model": pipeline.info.model_id})


def likeliest(probabilities: Floats, labels: tuple[str, ...], top_k: int) -> list[dict[str, Any]]:
    """The `top_k` classes with the largest of `probabilities` [C], the largest first; of equals, the first named."""
    order = np.argsort(-probabilities, kind="stable")[:top_k]
    return [{"label": labels[index], "probability": probabilities[index]} for index in order]
