"""Errors as OpenAPI describes them: the shapes of their answers, and which errors a route has."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from service.error_formats import ErrorFormat
from service.errors import (
    BodyTooLarge,
    DeadlinePassed,
    Draining,
    EngineLost,
    HeadersTooLarge,
    InferenceFailed,
    InvalidParameter,
    KeyBusy,
    KeyRateExceeded,
    MalformedBody,
    MalformedRequest,
    MemoryFull,
    NoImages,
    NotAcceptable,
    NotReady,
    OutOfMemory,
    QueueFull,
    RequestStalled,
    ServiceError,
    TooManyConnections,
    TooManyImages,
    TooManyPixels,
    Unauthorized,
    UndecodableImage,
    UnsupportedTransferCoding,
    UnsupportedType,
    UriTooLong,
)

NOT_SERVING: tuple[type[ServiceError], ...] = (NotReady, Draining, EngineLost, TooManyConnections)
INFERENCE_ERRORS: tuple[type[ServiceError], ...] = (
    UndecodableImage,
    MalformedBody,
    MalformedRequest,
    NoImages,
    Unauthorized,
    NotAcceptable,
    RequestStalled,
    BodyTooLarge,
    TooManyPixels,
    TooManyImages,
    UnsupportedType,
    InvalidParameter,
    QueueFull,
    MemoryFull,
    KeyBusy,
    KeyRateExceeded,
    UriTooLong,
    HeadersTooLarge,
    InferenceFailed,
    UnsupportedTransferCoding,
    OutOfMemory,
    *NOT_SERVING,
    DeadlinePassed,
)
"""The errors of every inference route. Nobody reads the answer of a ClientGone, so OpenAPI does not list it."""


class ErrorDetail(BaseModel):
    """The error itself: a code for programs, a message for people."""

    code: str
    message: str
    details: dict[str, Any]


class ErrorAnswer(BaseModel):
    """The shape of every error on the service's own routes."""

    error: ErrorDetail


class OpenAIErrorDetail(BaseModel):
    """The error itself, as OpenAI's API describes it."""

    message: str
    type: str = Field(description="invalid_request_error, authentication_error, rate_limit_error or server_error")
    param: str | None = Field(description="the parameter that is wrong, if it is one")
    code: str


class OpenAIErrorAnswer(BaseModel):
    """The shape of every error under /v1, /embeddings and /models."""

    error: OpenAIErrorDetail


class CohereErrorAnswer(BaseModel):
    """The shape of every error of /v2/embed."""

    message: str


class OpenInferenceErrorAnswer(BaseModel):
    """The shape of every error of the Open Inference Protocol."""

    error: str = Field(description="a sentence")


ERROR_ANSWERS: dict[ErrorFormat, tuple[str, type[BaseModel]]] = {
    "own": ("Error", ErrorAnswer),
    "openai": ("OpenAIError", OpenAIErrorAnswer),
    "cohere": ("CohereError", CohereErrorAnswer),
    "open-inference": ("OpenInferenceError", OpenInferenceErrorAnswer),
}
"""By format, the answer of all errors: its name among OpenAPI's components, and its body."""


def error_responses(*errors: type[ServiceError], error_format: ErrorFormat = "own") -> dict[int | str, dict[str, Any]]:
    """The responses to `errors` as OpenAPI describes them: one per status, with the codes that it may carry."""
    codes: dict[int, list[str]] = {}
    for error in errors:
        codes.setdefault(error.status, []).append(f"`{error.code}`")
    answer = f"#/components/responses/{ERROR_ANSWERS[error_format][0]}"
    return {status: {"$ref": answer, "description": " or ".join(names)} for status, names in sorted(codes.items())}
