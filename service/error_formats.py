"""Errors in the JSON of the protocol that a client speaks, which the path of its request tells.

- /v1, /embeddings and /models: `{"error": {"message", "type", "param", "code"}}`, as OpenAI's API.
- /v2/embed: `{"message": "a sentence"}`, as Cohere's API.
- everything else under /v2: `{"error": "a sentence"}`, as the Open Inference Protocol.
- everywhere else: `{"error": {"code", "message", "details"}}`.
"""

from __future__ import annotations

from typing import Any, Literal

from service.errors import DeadlinePassed, RequestStalled, ServiceError
from service.paths import VERTEX_ROUTES

ErrorFormat = Literal["own", "openai", "cohere", "open-inference"]


def error_format(path: str) -> ErrorFormat:
    """The format of the errors of a path, which is without the prefix of a proxy and need not be that of a route."""
    first, _, rest = path.removeprefix("/").partition("/")
    if first in ("v1", "embeddings", "models") and not path.startswith(VERTEX_ROUTES):
        return "openai"
    if first == "v2":
        return "cohere" if rest == "embed" else "open-inference"
    return "own"


def error_body(error: ServiceError, path: str) -> dict[str, Any]:
    """The body of the answer to a request for `path`, for JSON."""
    chosen = error_format(path)
    if chosen == "openai":
        return {"error": _openai_error(error)}
    if chosen == "cohere":
        return {"message": error.message}
    if chosen == "open-inference":
        # PyTriton's client raises its timeout error where a message has these two words.
        prefix = "Deadline Exceeded: " if isinstance(error, DeadlinePassed) else ""
        return {"error": prefix + error.message}
    return error.body()


def error_headers(error: ServiceError, path: str) -> dict[str, str]:
    """The headers of the answer to a request for `path`.

    OpenAI's clients send a request again after 408, 409, 429 and every status from 500, unless `x-should-retry` says
    that it cannot help: an image on which the engine fails would be computed three times.
    """
    headers = error.headers
    can_help = error.retry_after_s is not None or isinstance(error, RequestStalled)
    if error_format(path) == "openai" and not can_help:
        headers["x-should-retry"] = "false"
    return headers


def _openai_error(error: ServiceError) -> dict[str, Any]:
    if error.status == 401:
        kind = "authentication_error"
    elif error.status == 429:
        kind = "rate_limit_error"
    else:
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {"message": error.message, "type": kind, "param": error.details.get("parameter"), "code": error.code}
