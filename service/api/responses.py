"""Answers: errors in one shape, and the media type that the client likes best."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.api.middleware import record_of
from service.errors import NotAcceptable, ServiceError

JSON = "application/json"
QVALUE = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")


def error_response(request: Request, error: ServiceError) -> Response:
    """The one shape of an error."""
    record_of(request.scope).error = error.code
    return Response(orjson.dumps(error.body()), error.status, error.headers, JSON)


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`content` by orjson, NumPy arrays included."""
    return Response(json_bytes(content), status, headers, JSON)


def json_bytes(content: Any) -> bytes:
    """`content` by orjson, NumPy arrays included (they must be contiguous)."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


@lru_cache(maxsize=32)  # clients send the same few
def preferred_type(accept: str, offered: tuple[str, ...]) -> str:
    """Which of `offered` (best first) an Accept header likes best (RFC 9110, section 12.5.1).

    Raises:
        NotAcceptable: none of them.
    """
    ranges = [_media_range(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    scores = [max((_specificity(kind, wanted), quality) for wanted, quality in ranges) for kind in offered]
    best = int(np.argmax([quality if matched else 0.0 for matched, quality in scores]))
    if not scores[best][0] or not scores[best][1]:
        raise NotAcceptable(f"Accept: {accept} allows none of {', '.join(offered)}", offered=list(offered))
    return offered[best]


def _media_range(part: str) -> tuple[str, float]:
    kind, *options = (piece.strip() for piece in part.lower().split(";"))
    quality = 1.0
    for option in options:
        name, _, value = option.partition("=")
        if name.strip() == "q":
            quality = float(value) if QVALUE.fullmatch(value.strip()) else 0.0
    return kind, quality


def _specificity(kind: str, wanted: str) -> int:
    """3 for the very type, 2 for its family, 1 for anything, 0 for another."""
    if wanted == kind:
        return 3
    if wanted == kind.split("/")[0] + "/*":
        return 2
    return int(wanted == "*/*")
