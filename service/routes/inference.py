"""The route of an inference: what FastAPI documents, called without what FastAPI does for routes of any kind."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.routes.intake import authorised


class InferenceRoute(APIRoute):
    """A route whose endpoint takes the request and a model of its query, `parameters`, and needs a key.

    Resolving dependencies costs a tenth of all that is done for an image outside the model; a key and one pydantic
    model need none of it. OpenAPI's description is made of the endpoint's signature as ever.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
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
