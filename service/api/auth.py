"""API keys: which requests may use the routes that need one, and how much one key may use."""

from __future__ import annotations

import hmac
import re

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.middleware import path_of
from service.api.request import service_of
from service.api.responses import error_response
from service.errors import KeyBusy, Unauthorized
from service.inference.limits import KeyBudget, require_rate
from service.paths import PROBES, is_below
from service.service import Service

KEY_HEADERS = ("x-api-key", "triton-access-token")
"""The headers that hold a key alone; PyTriton's client sends the second one and no other."""
BEARER = re.compile(r"[ \t]*bearer[ \t]+(.*)", re.IGNORECASE | re.DOTALL)


def check_key(request: Request) -> None:
    """Checks the key of a request; without API_KEYS every request passes.

    Inference routes call this function themselves; other routes name it as a dependency. The key comes as
    `Authorization: Bearer KEY` or as `X-API-Key: KEY`; where both are sent, one of them must be valid. A client of
    another protocol may send the key in a header of its own. The valid key is left in `request.state.api_key`.

    Raises:
        Unauthorized: the request has no key, or no valid one.
    """
    valid_keys = service_of(request).settings.api_keys
    if not valid_keys:
        return
    sent_keys = _sent_keys(request)
    # Lists on purpose: a generator would stop at the key that matches, and the time would tell which one it is.
    matches = [
        [hmac.compare_digest(key, form) for key in sent_keys for form in _encoded_forms(valid_key)]
        for valid_key in valid_keys
    ]
    matching = [key for key, match in zip(valid_keys, matches, strict=True) if any(match)]
    if not matching:
        raise Unauthorized("a valid key is needed: send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
    request.state.api_key = matching[0]


def admit_key(request: Request) -> None:
    """Checks the key of an inference request, and counts the request for it; `release_key` must follow.

    Raises:
        Unauthorized: as `check_key`.
        KeyBusy: KEY_MAX_REQUESTS is reached.
        KeyRateExceeded: KEY_IMAGES_PER_S leaves no room for even one image.
    """
    check_key(request)
    keys = service_of(request).budgets.keys
    if not keys:
        return
    budget = keys[request.state.api_key]
    require_rate(budget)
    if not budget.requests.take(1):
        limit = budget.requests.limit
        raise KeyBusy(f"{limit} requests with this key are in flight, as many as one key may have", limit=limit)
    request.state.key_budget = budget


def release_key(scope: Scope) -> None:
    """Ends what `admit_key` has begun, if it has."""
    budget: KeyBudget | None = scope["state"].pop("key_budget", None)
    if budget is not None:
        budget.requests.give(1)


class KeyedPathsMiddleware:
    """Asks for a key on the paths of KEYED_PATHS and below them; never on those of probes."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Wraps `app`."""
        self._app = app
        self._paths = service.settings.keyed_paths
        self._probes = PROBES | {service.settings.health_route}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] == "http":
            path = path_of(scope)
            if is_below(path, self._paths) and path not in self._probes:
                request = Request(scope)
                try:
                    check_key(request)
                except Unauthorized as error:
                    await error_response(request, error)(scope, receive, send)
                    return
        await self._app(scope, receive, send)


def _sent_keys(request: Request) -> list[bytes]:
    """The keys of a request as bytes. The scheme's case does not matter, nor do blanks (RFC 9110, section 11)."""
    keys = [key for name in KEY_HEADERS for key in request.headers.getlist(name)]
    for credentials in request.headers.getlist("authorization"):
        if bearer := BEARER.fullmatch(credentials):
            keys.append(bearer[1])
    # ASGI decodes headers as Latin-1, and not every blank of that is one of HTTP: 0xA0 ends "à" in UTF-8.
    return [key.strip(" \t").encode("latin-1") for key in keys]


def _encoded_forms(key: str) -> list[bytes]:
    """The bytes by which clients send `key`: UTF-8, or Latin-1 where that has its characters."""
    forms = [key.encode()]
    if not key.isascii() and all(ord(character) < 256 for character in key):
        forms.append(key.encode("latin-1"))
    return forms
