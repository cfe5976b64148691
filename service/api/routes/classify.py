"""POST /classify: images -> the most probable classes of the model's head."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.api.error_schemas import INFERENCE_ERRORS, error_responses
from service.api.fast_path import InferenceRoute
from service.api.request import RequestContext
from service.api.responses import (
    JSON,
    describe_skipped,
    header_value,
    json_response,
    preferred_type,
    with_gaps,
)
from service.api.schemas import Classifications, request_body
from service.errors import NoHead
from service.inference.classification import classify_images, most_probable
from service.parameters import ClassifyParameters

router = APIRouter(tags=["inference"], route_class=InferenceRoute)


@router.post(
    "/classify",
    summary="Name the most probable classes of images",
    response_description="The most probable classes of each image, in the order of the images.",
    response_model=Classifications,
    responses=error_responses(*INFERENCE_ERRORS, NoHead),
    openapi_extra=request_body(),
)
async def classify(request: Request, parameters: Annotated[ClassifyParameters, Query()]) -> Response:
    """Returns the most probable classes of each image, by the model's classification head."""
    context = RequestContext(request)
    pipeline = context.pipeline
    labels = pipeline.head.config.classes
    preferred_type(request.headers.get("accept", ""), (JSON,))
    skips = parameters.on_error == "skip"
    body = await context.read_body(skips=skips)
    skipped = body.errors if skips else None
    probabilities = await context.run_while_client_waits(
        classify_images(pipeline, context.images_to_infer(body.images, skipped))
    )
    context.record.images = len(probabilities)
    classified = [{"classes": most_probable(image, labels, parameters.top_k)} for image in probabilities]
    content: dict[str, Any] = {
        "model": pipeline.info.model_id,
        "count": len(body.images),
        "classifications": with_gaps(classified, skipped or {}),
    }
    if skipped is not None:
        content["errors"] = describe_skipped(skipped)
    return json_response(content, headers={"x-mae-model": header_value(pipeline.info.model_id)})
