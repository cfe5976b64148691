"""The app: routes, middleware, and errors turned into JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from model.engines.build import build
from service.api.fast_path import FastPathMiddleware
from service.api.middleware import BodyLimitMiddleware, ObservabilityMiddleware
from service.api.responses import error_response, json_response
from service.api.routes import classify, embed, ops, reconstruct
from service.api.schemas import refusal
from service.errors import ServiceError
from service.lifecycle.engine_loader import BuildEngine
from service.service import LocalService, Service
from service.settings import Settings, load_settings

DESCRIPTION = """Masked autoencoders: images in, embeddings, classes and reconstructions out.

Images come as `multipart/form-data` (every file part is one), as a raw body, or as JSON with base64."""


def create_app(
    settings: Settings | None = None, build_engine: BuildEngine = build, service: Service | None = None
) -> FastAPI:
    """The service as an ASGI app; without `settings` they come from the environment, and `service` is made of them.

    Raises:
        InvalidSettings: a setting that cannot be.
    """
    service = service or LocalService(load_settings() if settings is None else settings, build_engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close()

    app = FastAPIOffline(
        docs_url="/docs",
        redoc_url=None,
        title="mae-serve",
        version=version("mae-serve"),
        description=DESCRIPTION,
        lifespan=lifespan,
    )
    app.state.service = service
    routers = [routes.router for routes in (embed, classify, reconstruct, ops)]
    for router in routers:
        app.include_router(router)
    app.add_middleware(FastPathMiddleware, routers=routers)
    app.add_middleware(BodyLimitMiddleware, service=service)
    app.add_middleware(ObservabilityMiddleware, service=service)  # the last one added is the outermost
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unforeseen)
    app.add_api_route("/", _root, include_in_schema=False)
    return app


async def _root() -> Response:
    return RedirectResponse("docs")


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error_response(request, error)


async def _invalid_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(request, refusal(error.errors()[0]))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = error.detail.lower().replace(" ", "_")  # "Not Found", "Method Not Allowed"
    message = f"{request.method} {request.url.path}: {error.detail}"
    return json_response(
        {"error": {"code": code, "message": message, "details": {}}}, error.status_code, dict(error.headers or {})
    )


async def _unforeseen(request: Request, error: Exception) -> Response:
    """What nobody foresaw: the log has the traceback, the client an id to ask about."""
    request_id = request.scope["state"]["record"].id
    return error_response(request, ServiceError(f"unforeseen error, request {request_id}", request_id=request_id))
