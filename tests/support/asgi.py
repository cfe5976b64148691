"""Requests to middleware in plain ASGI, in this process and without a server."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.service import LocalService, Service
from service.settings import Settings
from tests.support.metrics import sample

Headers = dict[str, str]
MB = 1_000_000


def service(**settings: Any) -> Service:
    return LocalService(Settings(**{"max_body_mb": 1, "max_inflight_mb": 2} | settings))


def gauge(of: Service, name: str, **labels: str) -> float:
    return sample(of.metrics.render(), name, **labels)


class Client:
    """One request; `sent` counts the pieces of its body that were asked for."""

    def __init__(
        self, app: Any, method: str = "POST", path: str = "/embed", headers: Headers | None = None, **scope: Any
    ) -> None:
        self.app = app
        pairs = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        self.scope = {"type": "http", "method": method, "path": path, "headers": pairs, "query_string": b"", **scope}
        self.sent = 0
        self.messages: list[Any] = []
        self.started = asyncio.Event()

    async def run(self, body: Iterable[bytes] = (b"",), endless: bool = False) -> "Client":
        pieces = list(body)

        async def receive() -> dict[str, Any]:
            self.sent += 1
            if self.sent > len(pieces):
                if endless:
                    await asyncio.sleep(3600)
                return {"type": "http.disconnect"}
            more = endless or self.sent < len(pieces)
            return {"type": "http.request", "body": pieces[self.sent - 1], "more_body": more}

        async def send(message: Any) -> None:
            self.messages.append(message)
            self.started.set()

        await self.app(self.scope, receive, send)
        return self

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> Headers:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}


Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def app_of(handler: Handler) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        response = await handler(Request(scope, receive))
        await response(scope, receive, send)

    return app


async def count_bytes(request: Request) -> Response:
    return Response(str(len(await request.body())))


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 60))
