"""API keys: which requests may use the routes that need one."""

from __future__ import annotations

import hmac

from starlette.requests import Request

from service.api.request import service_of
from service.errors import Unauthorized


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
    headers = request.headers
    key = (headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")).encode()
    # A list on purpose: a generator would stop at the key that matches, and the time would tell which one it is.
    if not any([hmac.compare_digest(key, valid_key.encode()) for valid_key in valid_keys]):
        raise Unauthorized("a valid key is needed: send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
