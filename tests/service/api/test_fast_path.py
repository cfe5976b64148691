"""Inference routes, compared with the same routes as FastAPI calls them."""

import asyncio
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from service.api.app import create_app
from service.api.fast_path import FastPathMiddleware, InferenceRoute, inference_routes
from service.api.middleware import RequestRecord
from service.api.responses import json_response
from service.errors import QueueFull, ServiceError
from service.parameters import ReconstructParameters, invalid_parameter
from service.settings import Settings


async def echo(request: Request, parameters: Annotated[ReconstructParameters, Query()]) -> Response:
    return json_response({"parameters": parameters.model_dump(), "set": sorted(parameters.model_fields_set)})


async def refuse(request: Request, error: Exception) -> Response:
    refusal = error if isinstance(error, ServiceError) else invalid_parameter(error.errors()[0])  # type: ignore[attr-defined]
    return json_response(refusal.body(), refusal.status)


def app_with(route_class: type[APIRoute]) -> FastAPI:
    router = APIRouter(route_class=route_class)
    router.post("/echo")(echo)
    app = FastAPI()
    app.state.service = create_app(
        Settings(api_keys=("secret",) if route_class is InferenceRoute else ())
    ).state.service
    app.include_router(router)
    for kind in (ServiceError, RequestValidationError):
        app.add_exception_handler(kind, refuse)
    return app


async def post_both(query: str, key: str = "secret") -> list[httpx.Response]:
    responses = []
    for route_class in (InferenceRoute, APIRoute):
        transport = httpx.ASGITransport(app_with(route_class))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            responses.append(await client.post(f"/echo?{query}", headers={"x-api-key": key}))
    return responses


@pytest.mark.parametrize(
    "query",
    [
        "",
        "mask_ratio=0.5&view=panel",
        "seed=18446744073709551615",
        "patches=1%2C2",
        "seed=",
        "mask_ratio=nan",
        "mask_ratio=2&strategy=none",
        "seed=-1&unknown=1",
        "b=1&a=2",
        "view=",
    ],
)
def test_parameters_mean_what_they_mean_to_fastapi(query: str) -> None:
    ours, theirs = asyncio.run(post_both(query))
    assert (ours.status_code, ours.json()) == (theirs.status_code, theirs.json())


@pytest.mark.parametrize("query", ["seed=1&seed=2", "seed=1&view=panel&seed=1", "unknown=1&seed=3&unknown=1&seed=3"])
def test_a_repeated_parameter_is_refused_by_name(query: str) -> None:
    ours, _ = asyncio.run(post_both(query))
    name = query.split("=")[0]
    error = ours.json()["error"]
    assert (ours.status_code, error["code"], error["details"]) == (422, "invalid_parameter", {"parameter": name})
    assert error["message"] == f"{name}: given more than once"


@pytest.mark.parametrize("patches", ["", "a", "3,", "3,,4", "3, 4", "\u0663", "\u0663,4", "-1", "1234567890", "3\n"])
def test_patches_that_are_no_list_of_numbers_are_refused_in_plain_words(patches: str) -> None:
    ours, _ = asyncio.run(post_both(f"patches={quote(patches)}"))
    assert ours.status_code == 422
    assert ours.json()["error"]["message"] == (
        "patches: expected numbers of patches, separated by commas, such as 3,17,42"
    )


def test_described_as_by_fastapi() -> None:
    assert app_with(InferenceRoute).openapi() == app_with(APIRoute).openapi()


def test_the_key_comes_first() -> None:
    ours, _ = asyncio.run(post_both("unknown=1", key="wrong"))
    assert (ours.status_code, ours.json()["error"]["code"]) == (401, "unauthorized")


class Unreachable:
    """Stands where the rest of the app would."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise LookupError(f"{scope['method']} {scope['path']} was left to the app")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/echo?seed=1", 200, None),
        ("POST", "/echo?seed=x", 422, "invalid_parameter"),
        ("POST", "/fails", 429, "queue_full"),
    ],
)
def test_a_post_to_an_inference_goes_to_its_handler_and_nowhere_else(
    method: str, path: str, status: int, code: str | None
) -> None:
    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(fast_path())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path)

    response = asyncio.run(main())
    assert response.status_code == status
    assert response.json().get("error", {}).get("code") == code


@pytest.mark.parametrize(("method", "path"), [("GET", "/echo"), ("POST", "/other"), ("POST", "/echo/")])
def test_all_else_takes_the_usual_way(method: str, path: str) -> None:
    async def main() -> None:
        transport = httpx.ASGITransport(fast_path())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.request(method, path)

    with pytest.raises(LookupError, match=f"{method} {path} was left"):
        asyncio.run(main())


async def fails(request: Request, parameters: Annotated[ReconstructParameters, Query()]) -> Response:
    raise QueueFull("the queue is full")


def fast_path() -> Any:
    """The middleware with two routes, in front of an app that fails."""
    router = APIRouter(route_class=InferenceRoute)
    router.post("/echo")(echo)
    router.post("/fails")(fails)
    inner = FastPathMiddleware(Unreachable(), inference_routes([router]))

    async def around(scope: Any, receive: Any, send: Any) -> None:
        scope["app"] = create_app(Settings())
        scope["state"] = {"record": RequestRecord("1", scope["path"])}
        await inner(scope, receive, send)

    return around


async def wants_more(request: Request, parameters: Annotated[ReconstructParameters, Query()], other: int) -> None:
    """An endpoint that wants more than it would get."""


async def wants_a_number(request: Request, parameters: Annotated[ReconstructParameters, Query()], id: int) -> None:
    """An endpoint whose path parameter would have to be converted."""


def test_what_would_not_be_called_is_refused() -> None:
    router = APIRouter(route_class=InferenceRoute)
    for path, endpoint, options in (
        ("/more", wants_more, {}),
        ("/{id}", wants_a_number, {}),
        ("/depends", echo, {"dependencies": [Depends(lambda: None)]}),
    ):
        with pytest.raises(TypeError, match="nothing else"):
            router.post(path, **options)(endpoint)
