"""Cohere's API: POST /v2/embed for images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from model.arrays import Floats
from service.api.embedding_protocols import (
    Embedded,
    EmbeddingBody,
    EmbeddingProtocol,
    NoParameters,
    answer_request,
    describe_body,
)
from service.api.error_schemas import INFERENCE_ERRORS, error_responses
from service.api.fast_path import InferenceRoute
from service.api.image_inputs import IMAGES_ONLY, read_items
from service.api.routes.embed import base64_numbers
from service.errors import ImagesOnly, InvalidParameter, MalformedBody, ModelNotFound
from service.inference.dtypes import convert_vectors
from service.parameters import EmbedParameters

router = APIRouter(tags=["Cohere"], route_class=InferenceRoute)
EmbeddingType = Literal["float", "base64", "int8", "uint8", "binary", "ubinary"]
MIDDLE = 128
"""What an unsigned byte is larger than the signed one: of `uint8` and `ubinary`, 128 stands for 0."""


class CohereBody(EmbeddingBody):
    """The body of POST /v2/embed but for `images` and `inputs`."""

    embedding_types: list[EmbeddingType] | None = Field(
        None,
        min_length=1,
        description="float by default; base64: of little-endian float32; int8 and uint8: multiples of a scale per"
        " vector, uint8 plus 128; ubinary: the signs of whitened vectors, eight to a byte, the first in the highest"
        " bit; binary: the same minus 128",
    )
    output_dimension: int | None = Field(None, ge=1, description="whiten each vector and keep this many principal axes")


class BilledUnits(BaseModel):
    """What a request has cost."""

    images: int
    image_tokens: int = Field(description="the patches that were encoded, of all images")


class APIVersion(BaseModel):
    """The version of the protocol."""

    version: Literal["2"]


class Meta(BaseModel):
    """What an answer says of itself."""

    api_version: APIVersion
    billed_units: BilledUnits


class CohereEmbeddings(BaseModel):
    """The response of POST /v2/embed."""

    id: str
    response_type: Literal["embeddings_by_type"]
    embeddings: dict[EmbeddingType, list[Any]] = Field(
        description="by type, one vector per image in the order of the images"
    )
    texts: None
    meta: Meta
    scales: list[float] | None = Field(
        None, description="for int8 and uint8, the factor by which a vector's multiples become its values"
    )
    space: str = Field(description="the vector space in one word: vectors may be compared where it is the same")


IMAGE_SOURCES: dict[str, Any] = {
    "images": {
        "description": "data URIs or base64",
        "type": "array",
        "items": {"type": "string"},
        "minItems": 1,
    },
    "inputs": {
        "description": "in place of images: {content: [{type: image_url, image_url: {url: data URI}}]}",
        "type": "array",
        "items": {"type": "object"},
        "minItems": 1,
    },
}


@router.post(
    "/v2/embed",
    summary="Turn images into vectors, as Cohere's clients call it",
    response_description="One vector per image and type, in the order of the images.",
    response_model=CohereEmbeddings,
    responses=error_responses(*INFERENCE_ERRORS, ImagesOnly, ModelNotFound, error_format="cohere"),
    openapi_extra=describe_body(CohereBody, IMAGE_SOURCES),
)
async def embed(request: Request, parameters: Annotated[NoParameters, Query()]) -> Response:
    """Turns each image into a vector. The images are in the body; no URL is fetched, and unknown keys are ignored."""
    return await answer_request(request, PROTOCOL)


def _read_parameters(body: CohereBody) -> EmbedParameters:
    parameters = body.embed_parameters(body.output_dimension)
    if {"binary", "ubinary"} & set(body.embedding_types or ()) and not parameters.whitens:
        raise InvalidParameter(
            "embedding_types: binary vectors are the signs of whitened vectors: add output_dimension or whiten=true",
            parameter="embedding_types",
        )
    return parameters


def _read_images(content: dict[str, Any], max_images: int) -> list[bytes]:
    if content.get("texts"):
        raise ImagesOnly(f"texts are not served: {IMAGES_ONLY}", parameter="texts")
    images, inputs = content.get("images"), content.get("inputs")
    if images is not None and inputs is not None:
        raise MalformedBody('the JSON body has both "images" and "inputs": send one of them', parameter="images")
    if images is None and inputs is None:
        raise MalformedBody('the JSON body needs "images" or, in their place, "inputs"', parameter="images")
    name, items = ("images", images) if inputs is None else ("inputs", inputs)
    if not isinstance(items, list):
        raise MalformedBody(f"{name} must be a list", parameter=name)
    return read_items(items, max_images)


def _write_answer(body: CohereBody, embedded: Embedded) -> dict[str, Any]:
    vectors, types = embedded.vectors, body.embedding_types or ["float"]
    count, patches = len(vectors), embedded.patches
    answer: dict[str, Any] = {
        "id": f"embd-{embedded.request_id}",
        "response_type": "embeddings_by_type",
        "embeddings": {name: _convert(vectors, name) for name in types},
        "texts": None,
        "meta": {"api_version": {"version": "2"}, "billed_units": {"images": count, "image_tokens": patches}},
        "space": embedded.space,
    }
    if {"int8", "uint8"} & set(types):
        answer["scales"] = convert_vectors(vectors, "int8").scales
    return answer


def _convert(vectors: Floats, name: EmbeddingType) -> Any:
    """Vectors float32 [B, D] in one type, for JSON."""
    if name == "float":
        return vectors
    if name == "base64":
        return [base64_numbers(vector) for vector in vectors]
    numbers = convert_vectors(vectors, "int8" if name in ("int8", "uint8") else "binary").numbers
    if name == "uint8":
        return (numbers.astype(np.int16) + MIDDLE).astype(np.uint8)
    return (numbers.astype(np.int16) - MIDDLE).astype(np.int8) if name == "binary" else numbers


PROTOCOL = EmbeddingProtocol(CohereBody, _read_parameters, _read_images, _write_answer)
