"""Middleware that limits the bytes of request bodies, in plain ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.body_memory import BodyMemory
from service.errors import BodyTooLarge, RequestStalled
from service.service import Service

DISCARD_S = 2.0
"""How long a client may go on sending a body that nobody reads before its connection is closed."""
LAST_DISCARD_S = 0.3
"""The same when the process is to end; uvicorn cuts off after a second what is not answered then."""


class BodyLimitMiddleware:
    """Limits each body to MAX_BODY_MB, and all bodies together to MAX_INFLIGHT_MB.

    Bytes are counted as they arrive, so a length that is declared takes room from nobody. A body whose Content-Length
    is too large is refused when the app asks for its first byte: the length of a body that the app never reads does not
    matter, and a body that is too long is never held in memory. The bytes count until the answer begins.
    Where the memory is full, a body that hardly grows any more makes room for others (`BodyMemory`).
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Wraps `app`."""
        self._app = app
        self._service = service
        self._max_body = service.settings.max_body_bytes
        self._memory = BodyMemory(service.budgets.bodies, service.want_memory)
        service.on_memory_wanted = self._memory.make_room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        body = self._memory.open()
        received = 0
        complete = False

        def require_allowed(length: int) -> None:
            if length > self._max_body:
                raise BodyTooLarge(f"the body has more than {self._max_body} bytes (MAX_BODY_MB)", limit=self._max_body)

        async def receive_and_count() -> Message:
            nonlocal received, complete
            if not received and declared.isdecimal():
                require_allowed(int(declared))
            message = await (receive() if complete else body.receive(receive))
            if message["type"] == "http.request":
                complete = not message.get("more_body", False)
                size = len(message.get("body", b""))
                require_allowed(received + size)
                received += size
                await body.add(size)
            return message

        async def discard_rest() -> None:
            nonlocal complete
            while not complete:
                message = await receive()
                complete = message["type"] == "http.disconnect" or not message.get("more_body", False)

        def may_finish(start: Message) -> bool:
            """Whether the client may send the rest first, or it could lose the answer; one that has stalled may not."""
            closes = Headers(raw=start["headers"]).get("connection") == "close"
            return closes and start["status"] != RequestStalled.status

        async def send_after_body(message: Message) -> None:
            body.release()  # nobody needs it, and a client may never read its answer
            if not complete and message["type"] == "http.response.start" and may_finish(message):
                await self._wait_at_most(DISCARD_S, discard_rest())
            await send(message)

        try:
            await self._app(scope, receive_and_count, send_after_body)
        finally:
            body.release()

    async def _wait_at_most(self, seconds: float, work: Coroutine[Any, Any, None]) -> None:
        """Waits for `work`, but only LAST_DISCARD_S from the moment when the process is to end."""
        ending = self._service.exit_code is not None
        loop = asyncio.get_running_loop()
        timeout = asyncio.timeout(LAST_DISCARD_S if ending else seconds)

        def interrupt() -> None:
            timeout.reschedule(loop.time() + LAST_DISCARD_S)

        self._service.interrupts.add(interrupt)
        try:
            async with timeout:
                await work
        except TimeoutError:
            return
        finally:
            self._service.interrupts.discard(interrupt)
