"""The route of an inference: what FastAPI documents, called without what FastAPI does for routes of any kind."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, get_type_hints

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.middleware import record_of
from service.api.request import authorised
from service.api.responses import error_response
from service.api.schemas import refusal
from service.errors import ServiceError

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class InferenceRoute(APIRoute):
    """A route whose endpoint takes the request and a model of its query, `parameters`, and needs a key.

    Resolving dependencies costs a tenth of all that is done for an image outside the model; a key and one pydantic
    model need none of it. OpenAPI's description is made of the endpoint's signature as ever.
    """

    def get_route_handler(self) -> Handler:
        """What is called for a request.

        Raises:
            TypeError: the endpoint wants something else.
        """
        endpoint, hints = self.endpoint, get_type_hints(self.endpoint)
        wanted = {name: kind for name, kind in hints.items() if name != "return"}
        parameters: type[BaseModel] = wanted.get("parameters", object)
        if self.dependencies or set(wanted) != {"request", "parameters"} or not issubclass(parameters, BaseModel):
            raise TypeError(f"{self.path}: an inference takes a request and a model of its parameters, nothing else")

        async def handle(request: Request) -> Response:
            authorised(request)
            try:
                given = parameters.model_validate(dict(request.query_params))
            except ValidationError as error:
                raise RequestValidationError(error.errors()) from error
            answer: Response = await endpoint(request, given)
            return answer

        return handle


class FastPathMiddleware:
    """Plain ASGI: a POST to a route of inference goes straight to its handler, whatever else the app has.

    Routing, exit stacks and two wrappers for exceptions cost more than reading and checking a request does. Any other
    request, and any other method, takes FastAPI's way.
    """

    def __init__(self, app: ASGIApp, routers: Iterable[APIRouter]) -> None:
        """Around `app`, for the routes of `routers` that are inferences."""
        self._app = app
        routes = [route for router in routers for route in router.routes if isinstance(route, InferenceRoute)]
        self._handlers: dict[str, Handler] = {route.path: route.get_route_handler() for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        posted = scope["type"] == "http" and scope["method"] == "POST"
        handler = self._handlers.get(record_of(scope).endpoint) if posted else None
        if handler is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await handler(request)
        except ServiceError as error:
            response = error_response(request, error)
        except RequestValidationError as error:
            response = error_response(request, refusal(error.errors()[0]))
        await response(scope, receive, send)
