"""OpenAI's API: POST /v1/embeddings for images, GET /v1/models, both also without /v1."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import BaseModel, Field

from model.engines.base import EngineInfo
from service.api.embedding_protocols import (
    Embedded,
    EmbeddingBody,
    EmbeddingProtocol,
    NoParameters,
    answer_request,
    describe_body,
    require_model,
)
from service.api.error_schemas import INFERENCE_ERRORS, NOT_SERVING, error_responses
from service.api.fast_path import InferenceRoute
from service.api.image_inputs import IMAGES_ONLY, read_conversations, read_items
from service.api.request import RequestContext
from service.api.responses import json_response
from service.api.routes.embed import base64_numbers
from service.errors import (
    ImagesOnly,
    InvalidParameter,
    MalformedBody,
    ModelNotFound,
    ServiceError,
    Unauthorized,
)
from service.parameters import EmbedParameters

router = APIRouter(tags=["OpenAI"], route_class=InferenceRoute)
UNKNOWN_TIME = 0
"""Nobody knows when the model was made; the clients want a number."""


class OpenAIBody(EmbeddingBody):
    """The body of POST /v1/embeddings but for `input` and `messages`."""

    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="float (default): JSON numbers; base64: little-endian float32 in base64"
    )
    dimensions: int | None = Field(
        None, ge=0, description="whiten each vector and keep this many principal axes; 0: all numbers, as they are"
    )
    modality: str | None = Field(None, description="image, or absent")


class OpenAIEmbedding(BaseModel):
    """The vector of one image."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="numbers, or base64")


class Usage(BaseModel):
    """What a request has cost."""

    prompt_tokens: int = Field(description="the patches that were encoded, of all images")
    total_tokens: int


class OpenAIEmbeddings(BaseModel):
    """The response of POST /v1/embeddings."""

    object: Literal["list"]
    data: list[OpenAIEmbedding] = Field(description="one per image, in the order of the images")
    model: str = Field(description="name@weights-hash")
    usage: Usage
    space: str = Field(description="the vector space in one word: vectors may be compared where it is the same")


class Model(BaseModel):
    """The served model."""

    id: str = Field(description="name@weights-hash")
    object: Literal["model"]
    created: int = Field(description="0: the time is not known")
    owned_by: str


class Models(BaseModel):
    """The response of GET /v1/models."""

    object: Literal["list"]
    data: list[Model]


IMAGE_SOURCES: dict[str, Any] = {
    "input": {
        "description": "one image or a list: a data URI, base64, {image: …}, {bytes: …}, a part of the type image_url,"
        " or a chat message with one image",
        "anyOf": [{"type": "string"}, {"type": "object"}, {"type": "array", "items": {}, "minItems": 1}],
    },
    "messages": {
        "description": "in place of input: a conversation with one image, or a list of such conversations",
        "type": "array",
        "items": {},
        "minItems": 1,
    },
}
EMBEDDING_ERRORS = error_responses(*INFERENCE_ERRORS, ImagesOnly, ModelNotFound, error_format="openai")
MODEL_ERRORS: tuple[type[ServiceError], ...] = (Unauthorized, InvalidParameter, *NOT_SERVING)


@router.post(
    "/v1/embeddings",
    summary="Turn images into vectors, as OpenAI's clients call it",
    response_description="One vector per image, in the order of the images.",
    response_model=OpenAIEmbeddings,
    responses=EMBEDDING_ERRORS,
    openapi_extra=describe_body(OpenAIBody, IMAGE_SOURCES),
)
@router.post("/embeddings", include_in_schema=False)
async def embeddings(request: Request, parameters: Annotated[NoParameters, Query()]) -> Response:
    """Turns each image into a vector. The images are in the body; no URL is fetched, and unknown keys are ignored.

    The same as /embeddings.
    """
    return await answer_request(request, PROTOCOL)


@router.get(
    "/v1/models",
    summary="List the one model that is served",
    response_description="The served model.",
    response_model=Models,
    responses=error_responses(*MODEL_ERRORS, error_format="openai"),
)
@router.get("/models", include_in_schema=False)
async def list_models(request: Request, parameters: Annotated[NoParameters, Query()]) -> Response:
    """Lists the served model. The same as /models."""
    info = RequestContext(request).pipeline.info
    return json_response({"object": "list", "data": [_describe_model(info)]})


@router.get(
    "/v1/models/{model:path}",
    summary="Describe the model that is served",
    response_description="The served model.",
    response_model=Model,
    responses=error_responses(*MODEL_ERRORS, ModelNotFound, error_format="openai"),
)
@router.get("/models/{model:path}", include_in_schema=False)
async def retrieve_model(
    request: Request,
    parameters: Annotated[NoParameters, Query()],
    model: Annotated[str, Path(description="a name of the served model")],
) -> Response:
    """Describes the served model, if `model` is one of its names. The same as /models/{model}."""
    info = RequestContext(request).pipeline.info
    require_model(model, info)
    return json_response(_describe_model(info))


def _describe_model(info: EngineInfo) -> dict[str, Any]:
    return {"id": info.model_id, "object": "model", "created": UNKNOWN_TIME, "owned_by": "mae-serve"}


def _read_parameters(body: OpenAIBody) -> EmbedParameters:
    if body.modality not in (None, "image"):
        raise ImagesOnly(f"modality {body.modality!r} is not served: {IMAGES_ONLY}", parameter="modality")
    return body.embed_parameters(body.dimensions or None)


def _read_images(content: dict[str, Any], max_images: int) -> list[bytes]:
    value, messages = content.get("input"), content.get("messages")
    if value is not None and messages is not None:
        raise MalformedBody('the JSON body has both "input" and "messages": send one of them', parameter="input")
    if value is None and messages is None:
        raise MalformedBody('the JSON body needs "input" or, in its place, "messages"', parameter="input")
    return read_items(value, max_images) if messages is None else read_conversations(messages, max_images)


def _write_answer(body: OpenAIBody, embedded: Embedded) -> dict[str, Any]:
    in_base64 = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": base64_numbers(vector) if in_base64 else vector}
        for index, vector in enumerate(embedded.vectors)
    ]
    return {
        "object": "list",
        "data": data,
        "model": embedded.info.model_id,
        "usage": {"prompt_tokens": embedded.patches, "total_tokens": embedded.patches},
        "space": embedded.space,
    }


PROTOCOL = EmbeddingProtocol(OpenAIBody, _read_parameters, _read_images, _write_answer)
