"""Routes for operators: liveness, readiness, description and metrics of the service."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from service.api.auth import check_key
from service.api.error_schemas import NOT_SERVING, error_responses
from service.api.info import describe
from service.api.request import service_of
from service.api.responses import json_response
from service.api.schemas import Info, Liveness, Readiness
from service.errors import SearchFailed, Unauthorized

router = APIRouter(tags=["operations"])


@router.get(
    "/livez",
    summary="Tell whether the process should go on",
    response_model=Liveness,
    response_description="It loads, serves or drains.",
    responses={503: {"model": Liveness, "description": "The engine is lost: the process should be restarted."}},
)
@router.get("/v2/health/live", include_in_schema=False)
async def livez(request: Request) -> Response:
    """200 while the process loads, serves or drains; 503 once its engine is lost and it should be restarted."""
    service = service_of(request)
    live = service.state != "lost"
    return json_response({"state": service.state, "reason": service.progress, "live": live}, 200 if live else 503)


@router.get(
    "/readyz",
    summary="Tell whether requests are accepted",
    response_model=Readiness,
    response_description="Requests are accepted.",
    responses={503: {"model": Readiness, "description": "The service loads or drains, or the engine is lost."}},
)
@router.get("/v2/health/ready", include_in_schema=False)
@router.get(
    "/ping",
    summary="Tell SageMaker whether requests are accepted",
    tags=["platforms"],
    response_model=Readiness,
    response_description="Requests are accepted.",
    responses={503: {"model": Readiness, "description": "The service loads or drains, or the engine is lost."}},
)
async def readyz(request: Request) -> Response:
    """200 while the service accepts requests: after loading and the parity check, and before the drain."""
    service = service_of(request)
    ready = service.state == "ready"
    reason = "" if ready else service.progress
    return json_response({"state": service.state, "reason": reason, "ready": ready}, 200 if ready else 503)


@router.get(
    "/info",
    summary="Describe model, engine and limits",
    response_description="The model, the engine, the versions, and every limit in force.",
    response_model=Info,
    responses=error_responses(Unauthorized, SearchFailed, *NOT_SERVING),
    dependencies=[Depends(check_key)],
)
async def info(request: Request) -> Response:
    """Model, engine, parity, versions, the index, and every limit in force."""
    service = service_of(request)
    pipeline = service.pipeline
    return json_response(describe(pipeline.info, service.settings, await pipeline.describe_index()))


@router.get(
    "/metrics",
    summary="Export all metrics for Prometheus",
    response_class=Response,
    response_description="Prometheus' text format.",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(request: Request) -> Response:
    """All metrics in Prometheus' text format."""
    service = service_of(request)  # FastAPI runs a function that is not async in a thread: a GPU's driver may be slow
    return Response(service.exposition(), media_type=service.metrics.content_type)
