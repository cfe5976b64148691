"""What operators ask: is it alive, is it ready, what is it, how is it doing."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from service.api.info import describe
from service.api.request import authorised, service_of
from service.api.responses import json_response
from service.api.schemas import Info, error_answers

router = APIRouter(tags=["operations"])


@router.get("/livez", responses={503: {}})
@router.get("/v2/health/live", include_in_schema=False)
async def livez(request: Request) -> Response:
    """200 as long as the process is worth keeping: while it loads, serves and drains."""
    service = service_of(request)
    return json_response({"state": service.state, "reason": service.progress}, 503 if service.state == "lost" else 200)


@router.get("/readyz", responses={503: {}})
@router.get("/v2/health/ready", include_in_schema=False)
async def readyz(request: Request) -> Response:
    """200 while new work is taken: after load, warm-up and parity check, and before the drain."""
    service = service_of(request)
    ready = service.state == "ready"
    return json_response({"state": service.state, "reason": "" if ready else service.progress}, 200 if ready else 503)


@router.get("/info", response_model=Info, responses=error_answers(401, 503), dependencies=[Depends(authorised)])
async def info(request: Request) -> Response:
    """Model, engine, parity, versions, and every limit that is in force."""
    service = service_of(request)
    return json_response(describe(service.pipeline.info, service.settings))


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    service = service_of(request)  # not async, so in a thread: a GPU's driver may take its time
    return Response(service.exposition(), media_type=service.metrics.content_type)
