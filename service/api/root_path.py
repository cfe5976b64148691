"""A path prefix under which a proxy serves the service: ROOT_PATH."""

from __future__ import annotations

import uuid

from starlette.datastructures import URL
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class RootPathMiddleware:
    """Serves every path with the prefix and without it.

    So it does not matter whether the proxy strips the prefix, and probes may ask the server itself. The prefix alone is
    redirected to the same path with a slash at its end, because relative links on the page there need it.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        """Wraps `app`; `root_path` begins with a slash and does not end with one."""
        self._app = app
        self._root_path = root_path
        self._prefix = root_path + "/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] == "http":
            path = scope["path"]
            if path.startswith(self._prefix):
                scope["path"] = path[len(self._root_path) :]
            elif path == self._root_path:
                target = URL(path=self._prefix, query=scope["query_string"].decode("latin-1"))
                redirect = RedirectResponse(target, headers={"x-request-id": uuid.uuid4().hex})
                await redirect(scope, receive, send)
                return
        await self._app(scope, receive, send)
