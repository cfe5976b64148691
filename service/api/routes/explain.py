"""POST /explain: an image -> which of its patches carry a class, or the similarity with another image."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from model.images.shares import render_shares
from service.api.base64_text import encode_base64
from service.api.error_schemas import INFERENCE_ERRORS, error_responses
from service.api.fast_path import InferenceRoute
from service.api.request import RequestContext
from service.api.responses import JSON, PNG, header_value, json_bytes, preferred_type
from service.api.schemas import BINARY, ExplanationAnswer, request_body
from service.errors import NoHead
from service.inference.explanation import Explanation, ExplanationPlan, describe_explanation, explain_images
from service.parameters import ExplainParameters

router = APIRouter(tags=["inference"], route_class=InferenceRoute)


@router.post(
    "/explain",
    summary="Show which patches of an image carry its class or its similarity",
    response_description="The shares of all patches as a PNG or as JSON.",
    response_model=ExplanationAnswer,
    responses={
        200: {"content": {PNG: BINARY}},
        **error_responses(*INFERENCE_ERRORS, NoHead),
    },
    openapi_extra=request_body(),
)
async def explain_score(request: Request, parameters: Annotated[ExplainParameters, Query()]) -> Response:
    """Leaves random halves of an image's patches out, and tells by how much each patch raises or lowers the score."""
    context = RequestContext(request)
    pipeline, timings = context.pipeline, context.record.timings
    plan = ExplanationPlan.of(parameters, pipeline.info, pipeline.heads)
    media_type = preferred_type(request.headers.get("accept", ""), (PNG, JSON))
    body = await context.read_body()
    plan.require_images(len(body.images))

    async def work() -> tuple[bytes, Explanation]:
        explanation = await explain_images(pipeline, context.images_to_infer(body.images), plan)

        def write() -> bytes:
            picture = render_shares(parameters.view, explanation.patches, explanation.shares)
            if media_type == PNG:
                return picture
            content = describe_explanation(pipeline.info, plan, explanation)
            return json_bytes({**content, "view": parameters.view, "png": encode_base64(picture)})

        return await pipeline.render(write, timings), explanation

    content, explanation = await context.run_while_client_waits(work())
    headers = {
        "x-mae-model": header_value(pipeline.info.model_id),
        "x-mae-seed": str(plan.seed),
        "x-mae-score": f"{explanation.score:.6g}",
        "x-mae-scale": f"{explanation.scale:.6g}",
    }
    if explanation.label is not None:
        headers["x-mae-label"] = header_value(explanation.label)
    return Response(content, headers=headers, media_type=media_type)
