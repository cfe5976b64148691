"""The routes of Vertex AI: HEALTH_ROUTE, and PREDICT_ROUTE with instances in and predictions out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.api.bodies import ImagesBody, join, load_json, read_base64_image, too_many_images
from service.api.error_schemas import INFERENCE_ERRORS, error_responses
from service.api.fast_path import InferenceRoute
from service.api.request import RequestContext
from service.api.responses import JSON, json_bytes, preferred_type
from service.api.routes.embed import embedding_headers, embeddings_content
from service.api.routes.ops import readyz
from service.api.schemas import Readiness
from service.errors import InvalidParameter, MalformedBody, NoImages, UnsupportedType
from service.inference.dtypes import convert_vectors
from service.inference.embedding import EmbeddingPlan, embed_images
from service.parameters import EmbedParameters, invalid_parameter
from service.settings import Settings

PREDICT_BODY = 'the JSON body must be {"instances": [{"b64": base64}, …], "parameters": {…}}'


class NoParameters(BaseModel):
    """The query of a route that takes its parameters in its body."""

    model_config = ConfigDict(extra="forbid")


class Predictions(BaseModel):
    """The response of the predict route."""

    predictions: list[Any] = Field(description="what /embed has under `embeddings`: one vector per instance")
    scales: list[Any] | None = Field(None, description="the scale of each vector, for dtype=int8")
    errors: list[Any] | None = Field(None, description="the images that were left out, for on_error=skip")


def vertex_router(settings: Settings) -> APIRouter:
    """The routes of Vertex AI, as far as the settings name them."""
    router = APIRouter(tags=["platforms"], route_class=InferenceRoute)
    if settings.health_route:
        router.add_api_route(
            settings.health_route,
            readyz,
            methods=["GET"],
            route_class_override=APIRoute,
            summary="Tell Vertex AI whether requests are accepted",
            response_model=Readiness,
            response_description="Requests are accepted.",
            responses={503: {"model": Readiness, "description": "Requests are not accepted."}},
        )
    if settings.predict_route:
        router.add_api_route(
            settings.predict_route,
            predict,
            methods=["POST"],
            summary="Turn images into vectors, as Vertex AI calls it",
            response_description="One vector per instance, in the order of the instances.",
            response_model=Predictions,
            response_model_exclude_none=True,
            responses=error_responses(*INFERENCE_ERRORS),
            openapi_extra={"requestBody": {"required": True, "content": {JSON: {"schema": _body_schema()}}}},
        )
    return router


async def predict(request: Request, parameters: Annotated[NoParameters, Query()]) -> Response:
    """Answers as POST /embed does, with `instances` for the images and `parameters` for the query."""
    context = RequestContext(request)
    pipeline, timings = context.pipeline, context.record.timings
    preferred_type(request.headers.get("accept", ""), (JSON,))
    requested = EmbedParameters()

    async def read(content_type: str, chunks: AsyncIterator[bytes]) -> ImagesBody:
        nonlocal requested
        kind = content_type.partition(";")[0].strip().lower()
        if kind not in (JSON, ""):
            raise UnsupportedType(f"a body of type {kind} holds no instances: send {JSON}", type=kind)
        body, requested = await asyncio.to_thread(read_instances, await join(chunks), context.max_images)
        return body

    body = await context.read_body_by(read)
    plan = EmbeddingPlan.of(requested, pipeline.info, pipeline.heads)
    skipped = body.errors if requested.on_error == "skip" else None

    async def work() -> Response:
        vectors, done = await embed_images(pipeline, context.images_to_infer(body.images, skipped), plan)
        context.record.images = len(vectors)

        def write() -> Response:
            typed = convert_vectors(done.finish(vectors), requested.dtype)
            content = embeddings_content(pipeline.info, done, typed, skipped)
            names = {"embeddings": "predictions", "scales": "scales", "errors": "errors"}
            answer = {name: content[key] for key, name in names.items() if key in content}
            return Response(json_bytes(answer), headers=embedding_headers(pipeline.info, done), media_type=JSON)

        return await pipeline.render(write, timings)

    return await context.run_while_client_waits(work())


def read_instances(text: bytes, max_images: int) -> tuple[ImagesBody, EmbedParameters]:
    """The images and the parameters of a body.

    Each instance is `{"b64": base64}`, or the base64 itself, with or without `data:image/…;base64,`.

    Raises:
        NoImages: there is no instance.
        MalformedBody: the body is no JSON of this form; addresses of images are never fetched.
        TooManyImages: there are more than `max_images` instances.
        InvalidParameter: a key or a parameter is unknown, or a value is out of range.
    """
    content = load_json(text)
    if not isinstance(content, dict) or not isinstance(content.get("instances"), list):
        raise MalformedBody(PREDICT_BODY)
    if unknown := [key for key in content if key not in ("instances", "parameters")]:
        raise InvalidParameter(
            f"unknown JSON key {unknown[0]!r}: known are instances, parameters", parameter=unknown[0]
        )
    given = content.get("parameters")
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise MalformedBody(PREDICT_BODY)
    try:
        parameters = EmbedParameters.model_validate(given)
    except ValidationError as error:
        raise invalid_parameter(error.errors()[0]) from error
    instances = content["instances"]
    if len(instances) > max_images:
        raise too_many_images(max_images)
    if not instances:
        raise NoImages("there is no instance in the body")
    body = ImagesBody()
    for index, instance in enumerate(instances):
        try:
            body.images.append(_read_instance(instance, index))
        except MalformedBody as error:
            if parameters.on_error == "fail":
                raise
            body.errors[index] = error
            body.images.append(b"")
    return body, parameters


def _read_instance(instance: object, index: int) -> bytes:
    if isinstance(instance, dict):
        if set(instance) != {"b64"}:
            raise MalformedBody(f'instance {index} must be {{"b64": base64}}', image=index)
        instance = instance["b64"]
    return read_base64_image(instance, f"instance {index}", index)


def _body_schema() -> dict[str, Any]:
    image = {"type": "object", "properties": {"b64": {"type": "string"}}, "required": ["b64"]}
    parameters = EmbedParameters.model_json_schema()
    parameters.pop("title")
    instances = {"type": "array", "items": {"anyOf": [image, {"type": "string"}]}, "minItems": 1}
    return {
        "type": "object",
        "properties": {"instances": instances, "parameters": {"anyOf": [parameters, {"type": "null"}]}},
        "required": ["instances"],
        "additionalProperties": False,
    }
