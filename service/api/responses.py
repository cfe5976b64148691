"""Responses: errors in one shape, JSON, and the media type that a client prefers."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.api.middleware import path_of, record_of
from service.error_formats import error_body, error_headers
from service.errors import NotAcceptable, ServiceError

T = TypeVar("T")
JSON, PNG = "application/json", "image/png"
LARGE = 50_000
"""A response of more numbers than this is written in the pool, because it would block the event loop for too long."""
SAFE_IN_HEADER = string.punctuation.replace("%", "") + " "
QVALUE = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")


def error_response(request: Request, error: ServiceError, headers: Mapping[str, str] | None = None) -> Response:
    """`error` in the JSON of the request's protocol, with its status; its code goes into the request's record.

    `headers` are sent beside those of the error.
    """
    record_of(request.scope).error = error.code
    path = path_of(request.scope)
    content = orjson.dumps(error_body(error, path))
    return Response(content, error.status, {**error_headers(error, path), **(headers or {})}, JSON)


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`content` as JSON; see `json_bytes`."""
    return Response(json_bytes(content), status, headers, JSON)


def json_bytes(content: Any) -> bytes:
    """`content` as JSON by orjson; it may hold NumPy arrays, which must be contiguous."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def header_value(text: str) -> str:
    """`text` as the value of a header: percent-encoded in UTF-8 if it has what a header cannot hold."""
    if text.isascii() and text.isprintable():
        return text
    if any(ord(character) > 255 or unicodedata.category(character) == "Cc" for character in text):
        return quote(text, safe=SAFE_IN_HEADER, errors="replace")
    return text


def describe_skipped(skipped: Mapping[int, ServiceError]) -> list[dict[str, Any]]:
    """The errors of images that `on_error=skip` has left out, in the order of the images, for a response."""
    return [{"image": index, "code": error.code, "message": error.message} for index, error in sorted(skipped.items())]


def with_gaps(values: Iterable[T], skipped: Mapping[int, ServiceError]) -> list[T | None]:
    """`values` of the images that are not left out, and None at the place of each that is."""
    filled: list[T | None] = list(values)
    for index in sorted(skipped):
        filled.insert(index, None)
    return filled


@lru_cache(maxsize=32)  # clients send few different headers
def preferred_type(accept: str, offered: tuple[str, ...]) -> str:
    """The media type of `offered` that an Accept header prefers (RFC 9110, section 12.5.1); the first of equal ones.

    Raises:
        NotAcceptable: the header accepts none of them.
    """
    ranges = [_parse_range(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    scores = [
        max((_specificity(media_type, pattern), quality) for pattern, quality in ranges) for media_type in offered
    ]
    best = int(np.argmax([quality if specificity else 0.0 for specificity, quality in scores]))
    if not scores[best][0] or not scores[best][1]:
        raise NotAcceptable(f"Accept: {accept} allows none of {', '.join(offered)}", offered=list(offered))
    return offered[best]


def names_type(accept: str, media_type: str) -> bool:
    """Whether an Accept header names `media_type` itself, not only by `*/*` or its family."""
    ranges = [_parse_range(part) for part in accept.split(",")]
    return any(pattern == media_type and quality > 0 for pattern, quality in ranges)


def _parse_range(part: str) -> tuple[str, float]:
    """One part of an Accept header -> a media range and its weight; a weight that is no number counts as 0."""
    pattern, *options = (piece.strip() for piece in part.lower().split(";"))
    quality = 1.0
    for option in options:
        name, _, value = option.partition("=")
        if name.strip() == "q":
            quality = float(value) if QVALUE.fullmatch(value.strip()) else 0.0
    return pattern, quality


def _specificity(media_type: str, pattern: str) -> int:
    """How exactly a media range names `media_type`: 3 by name, 2 by family, 1 for any type, 0 not at all."""
    if pattern == media_type:
        return 3
    if pattern == media_type.split("/")[0] + "/*":
        return 2
    return int(pattern == "*/*")
