"""What operators ask: is it alive, is it ready, what is it, how is it doing."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter, Depends, Request, Response

from service.responses import json_response
from service.routes.intake import authorised, service_of
from service.schemas import Info, error_answers

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
    settings, pipeline = service.settings, service.pipeline
    limits = {
        "max_batch": pipeline.info.preferred_batch,
        "max_delay_ms": settings.max_delay_ms,
        "queue_images": settings.queue_images,
        "max_inflight_mb": settings.max_inflight_mb,
        "decode_threads": settings.decode_threads,
        "max_body_mb": settings.max_body_mb,
        "max_pixels": settings.max_pixels,
        "max_images": settings.max_images,
        "request_timeout_s": settings.request_timeout_s,
        "drain_timeout_s": settings.drain_timeout_s,
    }
    return json_response(
        {
            "model": pipeline.info.model_id,
            "version": version("mae-serve"),
            "engine": pipeline.info.model_dump(),
            "limits": limits,
        }
    )


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    service = service_of(request)
    return Response(service.metrics.render(), media_type=service.metrics.content_type)
