"""Routes of inference, beside the same routes as FastAPI calls them."""

import asyncio
from typing import Annotated

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from service.app import create_app
from service.responses import json_response
from service.routes.inference import InferenceRoute
from service.schemas import ReconstructParameters, refusal
from service.settings import Settings


async def echo(request: Request, parameters: Annotated[ReconstructParameters, Query()]) -> Response:
    return json_response({"given": parameters.model_dump(), "set": sorted(parameters.model_fields_set)})


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return json_response(refusal(error.errors()[0]).body(), 422)


def app(route_class: type[APIRoute]) -> FastAPI:
    router = APIRouter(route_class=route_class)
    router.post("/echo")(echo)
    made = FastAPI()
    made.state.service = create_app(
        Settings(api_keys=("secret",) if route_class is InferenceRoute else ())
    ).state.service
    made.include_router(router)
    made.add_exception_handler(RequestValidationError, refused)
    return made


async def answers(query: str, key: str = "secret") -> list[httpx.Response]:
    found = []
    for route_class in (InferenceRoute, APIRoute):
        transport = httpx.ASGITransport(app(route_class))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            found.append(await client.post(f"/echo?{query}", headers={"x-api-key": key}))
    return found


@pytest.mark.parametrize(
    "query",
    [
        "",
        "mask_ratio=0.5&view=panel",
        "seed=18446744073709551615",
        "seed=1&seed=2",
        "patches=1%2C2",
        "seed=",
        "mask_ratio=nan",
        "mask_ratio=2&strategy=none",
        "seed=-1&unknown=1",
        "unknown=1&unknown=2",
        "b=1&a=2",
        "view=",
    ],
)
def test_parameters_mean_what_they_mean_to_fastapi(query: str) -> None:
    ours, theirs = asyncio.run(answers(query))
    assert (ours.status_code, ours.json()) == (theirs.status_code, theirs.json())


def test_described_as_by_fastapi() -> None:
    assert app(InferenceRoute).openapi() == app(APIRoute).openapi()


def test_the_key_comes_first() -> None:
    with pytest.raises(Exception, match="a valid key is needed"):
        asyncio.run(answers("unknown=1", key="wrong"))


async def unkeyed(request: Request, parameters: Annotated[ReconstructParameters, Query()], other: int) -> None:
    """An endpoint that wants more than it would get."""


def test_what_would_not_be_called_is_refused() -> None:
    router = APIRouter(route_class=InferenceRoute)
    with pytest.raises(TypeError, match="nothing else"):
        router.post("/more")(unkeyed)
    with pytest.raises(TypeError, match="nothing else"):
        router.post("/depends", dependencies=[Depends(lambda: None)])(echo)
