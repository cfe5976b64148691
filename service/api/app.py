"""The ASGI app: routes, middleware, and errors as JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import Response

from model.engines.build import build
from service.api.auth import KeyedPathsMiddleware
from service.api.body_limit import BodyLimitMiddleware
from service.api.cors import CrossOriginMiddleware
from service.api.fast_path import FastPathMiddleware, inference_routes
from service.api.middleware import ObservabilityMiddleware, RequestLineMiddleware, record_of
from service.api.openapi import DescribedAPI
from service.api.page import Page
from service.api.responses import error_response
from service.api.root_path import RootPathMiddleware
from service.api.routes import (
    anomaly,
    classify,
    cohere,
    docs,
    embed,
    explain,
    open_inference,
    openai,
    ops,
    reconstruct,
    sagemaker,
    search,
)
from service.api.routes.vertex import vertex_router
from service.errors import MethodNotAllowed, NotFound, ServiceError
from service.lifecycle.engine_loader import BuildEngine
from service.parameters import invalid_parameter
from service.service import LocalService, Service
from service.settings import Settings, load_settings

DESCRIPTION = """Masked autoencoders: images in, embeddings, classes and reconstructions out.

Send images as `multipart/form-data` (every file part is an image), as a raw body (one image), or as JSON in base64."""
ROUTERS: tuple[APIRouter, ...] = (
    embed.router,
    classify.router,
    reconstruct.router,
    explain.router,
    anomaly.router,
    search.router,
    openai.router,
    cohere.router,
    open_inference.inference_router,
    open_inference.router,
    sagemaker.router,
    ops.router,
    docs.router,
)

ROUTING_ERRORS: dict[int, type[ServiceError]] = {404: NotFound, 405: MethodNotAllowed}
"""What Starlette's routing raises as exceptions of its own."""


def create_app(
    settings: Settings | None = None,
    build_engine: BuildEngine = build,
    service: Service | None = None,
    routers: Sequence[APIRouter] = ROUTERS,
) -> FastAPI:
    """The service as an ASGI app.

    Args:
        settings: of the service; if they are None, they are read from the environment.
        build_engine: builds the engine of a service that is made here.
        service: the service behind the routes; if it is None, it is made of `settings` and `build_engine`.
        routers: the routes. Requests to every `InferenceRoute` among them are counted and logged, and a drain waits
                for them.

    Raises:
        InvalidSettings: a setting is not valid.
    """
    service = service or LocalService(load_settings() if settings is None else settings, build_engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close()

    app = FastAPIOffline(
        docs_url=None,  # ours has relative links
        redoc_url=None,
        redirect_slashes=False,
        title="mae-serve",
        version=version("mae-serve"),
        description=DESCRIPTION,
        lifespan=lifespan,
    )
    app.state.service = service
    described = DescribedAPI(app, bool(service.settings.api_keys), service.settings.root_path)
    app.openapi = described  # type: ignore[method-assign]
    routers = (*routers, vertex_router(service.settings))
    # Without a prefix the routes are used as they are: include_router would make each of them anew for this app.
    app.router.routes += [route for router in routers for route in router.routes]
    routes = inference_routes(routers)
    app.add_middleware(FastPathMiddleware, routes=routes)
    app.add_middleware(BodyLimitMiddleware, service=service)
    if service.settings.keyed_paths:
        app.add_middleware(KeyedPathsMiddleware, service=service)
    if service.settings.cors_origins:
        app.add_middleware(CrossOriginMiddleware, origins=service.settings.cors_origins)
    parameters = {route.path_format: route.parameter_names for route in routes}
    app.add_middleware(ObservabilityMiddleware, service=service, routes=routes, parameters=parameters)
    app.add_middleware(RequestLineMiddleware)
    if service.settings.root_path:
        app.add_middleware(RootPathMiddleware, root_path=service.settings.root_path)  # the last one is the outermost
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)
    Page().add_routes(app)
    return app


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error_response(request, error)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_response(request, invalid_parameter(error.errors()[0]))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return error_response(request, ROUTING_ERRORS[error.status_code](message), error.headers)


async def _unexpected_error(request: Request, error: Exception) -> Response:
    """Tells the client the request's id, by which the operator finds the traceback in the log."""
    request_id = record_of(request.scope).id
    return error_response(request, ServiceError(f"unexpected error, request {request_id}", request_id=request_id))
