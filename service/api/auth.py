"""API keys: which requests may use the routes that need one."""

from __future__ import annotations

import hmac

from starlette.requests import Request

from service.api.request import service_of
from service.errors import Unauthorized

BEARER = "bearer "
"""The scheme is case-insensitive (RFC 9110, section 11.1)."""


def check_key(request: Request) -> None:
    """Checks the key of a request; without API_KEYS every request passes.

    Inference routes call this function themselves; other routes name it as a dependency. The key comes as
    `Authorization: Bearer KEY` or as `X-API-Key: KEY`; where both are sent, X-API-Key counts.

    Raises:
        Unauthorized: the request has no key, or its key is not valid.
    """
    valid_keys = service_of(request).settings.api_keys
    if not valid_keys:
        return
    authorization = request.headers.get("authorization", "")
    if authorization[: len(BEARER)].lower() == BEARER:
        authorization = authorization[len(BEARER) :]
    key = (request.headers.get("x-api-key") or authorization).encode()
    # A list on purpose: a generator would stop at the key that matches, and the time would tell which one it is.
    if not any([hmac.compare_digest(key, valid_key.encode()) for valid_key in valid_keys]):
        raise Unauthorized("a valid key is needed: send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
