"""Cross-origin requests: which pages of other origins may use the service (CORS_ORIGINS)."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

METHODS = ("GET", "HEAD", "POST")
EXPOSED = (
    "X-MAE-Dtype",
    "X-MAE-Flagged",
    "X-MAE-Keep",
    "X-MAE-Label",
    "X-MAE-Loss",
    "X-MAE-Mask-Ratio",
    "X-MAE-Model",
    "X-MAE-Scale",
    "X-MAE-Scales",
    "X-MAE-Score",
    "X-MAE-Seed",
    "X-MAE-Shape",
    "X-MAE-Space",
    "X-MAE-Threshold",
    "Retry-After",
    "Server-Timing",
    "Traceparent",
    "X-Request-Id",
)
"""The headers of answers that pages may read, beside those that every page may."""


class CrossOriginMiddleware:
    """Lets pages of the allowed origins read answers; the preflight requests of their browsers need no key.

    To a preflight of another origin the service answers as it does without CORS_ORIGINS. Cookies play no part, because
    the service knows none.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        """Wraps `app`; `origins` may hold `*`."""
        self._app = app
        self._cors = CORSMiddleware(app, origins, METHODS, allow_headers=["*"], expose_headers=EXPOSED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        is_refused = (
            scope["type"] == "http"
            and scope["method"] == "OPTIONS"
            and not self._cors.is_allowed_origin(Headers(scope=scope).get("origin", ""))
        )
        await (self._app if is_refused else self._cors)(scope, receive, send)
