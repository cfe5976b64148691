"""POST /anomaly: images -> scores of their patches, as a picture or as numbers."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from model.engines.base import EngineInfo
from service.api.error_schemas import INFERENCE_ERRORS, error_responses
from service.api.fast_path import InferenceRoute
from service.api.request import RequestContext
from service.api.responses import JSON, PNG, describe_skipped, header_value, json_bytes, preferred_type, with_gaps
from service.api.schemas import BINARY, Anomalies, request_body
from service.errors import NoDecoder, ServiceError
from service.inference.anomaly import Anomaly, AnomalyPlan
from service.parameters import AnomalyParameters

router = APIRouter(tags=["inference"], route_class=InferenceRoute)


@router.post(
    "/anomaly",
    summary="Find what is not normal in images",
    response_description="A picture of the scores as PNG, for one image; or the scores as JSON.",
    response_model=Anomalies,
    responses={
        200: {"content": {PNG: BINARY}},
        **error_responses(*INFERENCE_ERRORS, NoDecoder),
    },
    openapi_extra=request_body(),
)
async def detect_anomalies(request: Request, parameters: Annotated[AnomalyParameters, Query()]) -> Response:
    """Scores the patches of each image by features or by reconstruction: one image as PNG, several as JSON."""
    context = RequestContext(request)
    pipeline, timings = context.pipeline, context.record.timings
    plan, accept = AnomalyPlan.of(parameters, pipeline), request.headers.get("accept", "")
    skips = parameters.on_error == "skip"
    # Refuses early; the number of images, known later, decides between the types.
    preferred_type(accept, (JSON,) if skips else (PNG, JSON))
    body = await context.read_body(skips=skips)
    skipped = body.errors if skips else None
    media_type = preferred_type(accept, (PNG, JSON) if len(body.images) == 1 and not skips else (JSON,))

    async def work() -> tuple[bytes, list[Anomaly]]:
        anomalies = await plan.detect(pipeline, context.images_to_infer(body.images, skipped, caches=False))
        context.record.images = len(anomalies)
        if media_type == PNG:
            return await pipeline.render(lambda: anomalies[0].render(parameters), timings), anomalies
        return json_bytes(_content(pipeline.info, parameters, plan, anomalies, skipped)), anomalies

    content, anomalies = await context.run_while_client_waits(work())
    headers = {"x-mae-model": header_value(pipeline.info.model_id)}
    if media_type == PNG:
        headers["x-mae-score"] = f"{anomalies[0].score:.6g}"
        if plan.threshold is not None:
            headers["x-mae-threshold"] = f"{plan.threshold:.6g}"
            headers["x-mae-flagged"] = str(anomalies[0].flagged).lower()
    if plan.seed is not None:
        headers["x-mae-seed"] = str(plan.seed)
    return Response(content, headers=headers, media_type=media_type)


def _content(
    info: EngineInfo,
    parameters: AnomalyParameters,
    plan: AnomalyPlan,
    anomalies: list[Anomaly],
    skipped: dict[int, ServiceError] | None,
) -> dict[str, Any]:
    """The response as JSON: `Anomalies`."""
    images = [
        {"score": np.float32(found.score), "flagged": found.flagged, "patches": np.ascontiguousarray(found.scores)}
        for found in anomalies
    ]
    content: dict[str, Any] = {
        "model": info.model_id,
        "method": plan.method,
        "count": len(anomalies) + len(skipped or ()),
        "grid": (info.config.grid, info.config.grid),
        "calibrated": plan.threshold is not None,
        "false_alarms": None if plan.threshold is None else parameters.false_alarms,
        "threshold": plan.threshold,
        "mask_ratio": plan.mask_ratio,
        "passes": len(plan.visible_indices) or None,
        "seed": plan.seed,
        "anomalies": with_gaps(images, skipped or {}),
    }
    return content if skipped is None else {**content, "errors": describe_skipped(skipped)}
