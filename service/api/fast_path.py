"""Inference routes: FastAPI documents them, but requests bypass its routing and its dependency resolver."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, get_type_hints

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.auth import admit_key, release_key
from service.api.middleware import record_of
from service.api.responses import error_response
from service.errors import InvalidParameter, ServiceError
from service.parameters import invalid_parameter

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class InferenceRoute(APIRoute):
    """A route that needs a key, and whose endpoint takes the request and a pydantic model of its query, `parameters`.

    The endpoint may also take parameters of the path, as `str`. FastAPI writes the route's OpenAPI description from the
    signature, as for any route, but does not resolve the parameters as dependencies: that would be a tenth of the CPU
    time per image that is spent outside the model.
    """

    @property
    def parameter_names(self) -> frozenset[str]:
        """The names of the parameters of its query."""
        query: type[BaseModel] = get_type_hints(self.endpoint)["parameters"]
        return frozenset(query.model_fields)

    def get_route_handler(self) -> Handler:
        """The function that answers a request to this route.

        Raises:
            TypeError: the endpoint has other parameters.
        """
        endpoint, hints = self.endpoint, get_type_hints(self.endpoint)
        kinds = {name: kind for name, kind in hints.items() if name != "return"}
        query: type[BaseModel] = kinds.pop("parameters", object)
        takes_request = kinds.pop("request", None) is Request
        in_path = tuple(kinds)
        if (
            self.dependencies
            or not takes_request
            or not issubclass(query, BaseModel)
            or not self.param_convertors.keys() >= kinds.keys()
            or any(kind is not str for kind in kinds.values())
        ):
            raise TypeError(
                f"{self.path}: an inference route takes a request, a model of its query and, as str, parameters of its"
                " path, nothing else"
            )

        async def handle(request: Request) -> Response:
            admit_key(request)
            try:
                parameters = query.model_validate(unique_parameters(request.query_params.multi_items()))
            except ValidationError as error:
                raise invalid_parameter(error.errors()[0]) from error
            response: Response = await endpoint(
                request, parameters, **{name: request.path_params[name] for name in in_path}
            )
            return response

        return handle


def unique_parameters(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The parameters of a query, given as pairs of name and value.

    Raises:
        InvalidParameter: a parameter stands in it twice, and nobody could say which one counts.
    """
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise InvalidParameter(f"{repeated}: given more than once", parameter=repeated)
    return parameters


def inference_routes(routers: Iterable[APIRouter]) -> tuple[InferenceRoute, ...]:
    """The inference routes among those of `routers`."""
    return tuple(route for router in routers for route in router.routes if isinstance(route, InferenceRoute))


class FastPathMiddleware:
    """Calls the handler of an inference route; hands every other request to the app.

    FastAPI's routing, exit stacks and two wrappers for exceptions cost more than reading and checking a request does.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[InferenceRoute]) -> None:
        """Wraps `app`. The `ObservabilityMiddleware`, which is further out, has matched the path."""
        self._app = app
        self._handlers = {
            (method, route.path_format): route.get_route_handler() for route in routes for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        handler = None
        if scope["type"] == "http":
            handler = self._handlers.get((scope["method"], record_of(scope).endpoint))
        if handler is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            try:
                response = await handler(request)
            except ServiceError as error:
                response = error_response(request, error)
            await response(scope, receive, send)
        finally:
            release_key(scope)
