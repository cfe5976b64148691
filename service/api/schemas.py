"""What goes over the wire: query parameters, answers, and the bodies as OpenAPI describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from model.engines.base import EngineInfo
from model.images.render import View
from service.errors import InvalidParameter
from service.parameters import Pool


class Embeddings(BaseModel):
    """The answer of POST /embed."""

    model: str = Field(description="name@weights-hash: with precision and preprocessing (/info), names a vector space")
    pool: Pool
    dim: int
    count: int
    embeddings: list[Any] = Field(description="a vector an image; base64 text, or a list of vectors for tokens")
    grid: tuple[int, int] | None = Field(None, description="rows and columns of patches, for tokens")
    positions: list[int] | None = Field(None, description="row-major places of the tokens, for keep below 1")
    seed: int | None = Field(None, description="for keep below 1")
    whitened: bool | None = Field(None, description="true for whiten=true, else absent")


class ClassProbability(BaseModel):
    """One class that an image may be of."""

    label: str = Field(description="its name, as /info lists it under engine.head.classes")
    probability: float = Field(description="softmax over all classes of the head, 0 to 1")


class Classified(BaseModel):
    """One image in the answer of POST /classify."""

    classes: list[ClassProbability] = Field(description="the likeliest first")


class Classifications(BaseModel):
    """The answer of POST /classify."""

    model: str = Field(description="name@weights-hash")
    count: int
    classifications: list[Classified] = Field(description="one an image, in the order of the images")


class Reconstructed(BaseModel):
    """One image in the answer of POST /reconstruct."""

    loss: float = Field(description="mean squared error over the removed patches")
    error: list[float] = Field(description="squared error of every patch, row-major")
    png: str = Field(description="the picture, base64")


class Reconstructions(BaseModel):
    """The answer of POST /reconstruct as JSON."""

    model: str
    view: View
    count: int
    seed: int | None = Field(description="none for an explicit mask")
    mask_ratio: float = Field(description="share of the patches that was removed")
    grid: tuple[int, int]
    mask: list[int] = Field(description="1 = removed, 0 = kept, row-major")
    reconstructions: list[Reconstructed]


class Info(BaseModel):
    """The answer of GET /info."""

    model: str
    version: str
    engine: EngineInfo
    limits: dict[str, float | int]


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str
    message: str
    details: dict[str, Any]


class ErrorAnswer(BaseModel):
    """The shape of every error."""

    error: ErrorDetail


def refusal(error: Mapping[str, Any]) -> InvalidParameter:
    """The first of pydantic's errors about parameters, as a refusal that names the parameter."""
    name = str(error["loc"][-1])
    reason = "unknown parameter" if error["type"] == "extra_forbidden" else error["msg"]
    return InvalidParameter(f"{name}: {reason}", parameter=name)


def request_body(with_mask: bool) -> dict[str, Any]:
    """OpenAPI's description of the three bodies that images come in."""
    binary = {"type": "string", "format": "binary"}
    parts: dict[str, Any] = {"image": {"type": "array", "items": binary, "description": "one part an image"}}
    keys: dict[str, Any] = {
        "images": {"type": "array", "items": {"type": "string"}, "description": "base64, or data:image/…;base64,…"}
    }
    if with_mask:
        parts["mask"] = {**binary, "description": "white = removed, as large as the image"}
        keys["mask"] = {"type": "string", "description": "base64; white = removed"}
    raw = {"schema": binary}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": {"type": "object", "properties": parts, "required": ["image"]}},
                "application/json": {"schema": {"type": "object", "properties": keys, "required": ["images"]}},
                **{kind: raw for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream")},
            },
        }
    }


def error_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the refusals."""
    return {status: {"model": ErrorAnswer} for status in statuses}
