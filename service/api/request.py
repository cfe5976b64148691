"""What every inference route does first and meanwhile: admit, read, watch the clock and the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from service.api.bodies import Payload, read_payload
from service.api.middleware import RequestRecord, record_of
from service.errors import ClientGone, DeadlinePassed
from service.inference.pipeline import Pipeline
from service.service import Service

T = TypeVar("T")


class RequestContext:
    """One request for inference, admitted."""

    def __init__(self, request: Request) -> None:
        """Checks that the service takes new work.

        Raises:
            NotReady, Draining, EngineLost: it does not.
        """
        service = service_of(request)
        self.pipeline: Pipeline = service.pipeline
        self.record: RequestRecord = record_of(request.scope)
        self.deadline = self.record.started + service.settings.request_timeout_s
        self._max_images = service.settings.max_images
        self._request = request

    async def payload(self, takes_mask: bool = False) -> Payload:
        """Reads the body.

        Raises:
            ServiceError: the body is refused, or does not arrive in time.
        """
        content_type = self._request.headers.get("content-type", "")
        start = time.monotonic()
        try:
            async with asyncio.timeout(self.deadline - start):
                payload = await read_payload(content_type, self._request.stream(), self._max_images, takes_mask)
        except TimeoutError:
            raise DeadlinePassed("the body did not arrive in time") from None
        except ClientDisconnect:
            raise ClientGone("the client left while it was sending") from None
        self.record.read = time.monotonic() - start
        self.record.images = len(payload.images)
        return payload

    async def attended(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` as long as there is time and somebody who waits for it.

        Raises:
            DeadlinePassed: the time is over.
            ClientGone: nobody waits.
        """
        left, over = False, False
        limit = asyncio.timeout(self.deadline - time.monotonic())

        def leave(_: object) -> None:
            nonlocal left
            if not over:
                left = True
                limit.reschedule(0)

        gone = asyncio.ensure_future(self._gone())
        try:
            async with limit:
                gone.add_done_callback(leave)
                return await work
        except TimeoutError:
            if left:
                raise ClientGone("the client left while it was waiting") from None
            if limit.expired():
                raise DeadlinePassed("the answer was not ready in time") from None
            raise
        finally:
            over = True
            gone.cancel()

    async def _gone(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass


def service_of(request: Request) -> Service:
    """The service that the app was made for."""
    service: Service = request.app.state.service
    return service


def authorised(request: Request) -> None:
    """A dependency of routes that need a key.

    Raises:
        Unauthorized: there are keys, and the request brings none of them.
    """
    headers = request.headers
    service_of(request).check_key(headers.get("authorization", ""), headers.get("x-api-key", ""))
