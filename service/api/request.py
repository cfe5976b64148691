"""Admission, body, deadline and disconnect of inference requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from service.api.bodies import ImagesBody, read_images
from service.api.middleware import RequestRecord, record_of
from service.errors import ClientGone, DeadlinePassed
from service.inference.pipeline import Pipeline
from service.service import Service

T = TypeVar("T")


class RequestContext:
    """An inference request that the service has admitted.

    All routes check in one order, so that a request with several faults gets the same error from each: key and query
    (both before the route is called), the state of the service (this constructor), the abilities of the model, Accept,
    then the length and the content of the body (`read_body`), the images, the mask.

    Attributes:
        pipeline: the pipeline to the engine.
        record: describes the request for the log and the metrics.
        deadline: the time by which the answer must be ready, in seconds of time.monotonic().
    """

    def __init__(self, request: Request) -> None:
        """Admits `request`.

        Raises:
            NotReady, Draining, EngineLost: the service takes no new work.
        """
        service = service_of(request)
        self.pipeline: Pipeline = service.pipeline
        self.record: RequestRecord = record_of(request.scope)
        self.deadline = self.record.started + service.settings.request_timeout_s
        self._max_images = service.settings.max_images
        self._request = request

    async def read_body(self, takes_mask: bool = False) -> ImagesBody:
        """Reads the body; `takes_mask` is that of `read_images`.

        Raises:
            BodyTooLarge, MemoryFull: the body is too long, alone or with the others that are being received.
            UnsupportedType, MalformedBody, NoImages, TooManyImages, InvalidParameter: as `read_images`.
            DeadlinePassed: the body has not arrived in time.
            ClientGone: the client has closed the connection.
        """
        content_type = self._request.headers.get("content-type", "")
        start = time.monotonic()
        try:
            async with asyncio.timeout(self.deadline - start):
                body = await read_images(content_type, self._request.stream(), self._max_images, takes_mask)
        except TimeoutError:
            raise DeadlinePassed("the body did not arrive in time") from None
        except ClientDisconnect:
            raise ClientGone("the client closed the connection while it was sending") from None
        self.record.read = time.monotonic() - start
        self.record.images = len(body.images)
        return body

    async def run_while_client_waits(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` and returns its result; cancels it at the deadline, or when the client closes the connection.

        Call it after `read_body`: it takes over the reading side of the connection.

        Raises:
            DeadlinePassed: the deadline came first.
            ClientGone: the client closed the connection first.
        """
        result, disconnect = asyncio.create_task(work), asyncio.create_task(self._wait_for_disconnect())
        try:
            seconds_left = self.deadline - time.monotonic()
            await asyncio.wait({result, disconnect}, timeout=seconds_left, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            if disconnect.done():
                disconnect.result()  # raises an error of the connection
                raise ClientGone("the client closed the connection while it was waiting")
            raise DeadlinePassed("the answer was not ready in time")
        finally:
            disconnect.cancel()
            if result.cancel():
                await asyncio.wait({result})  # until then it may hold a place in the queue

    async def _wait_for_disconnect(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass


def service_of(request: Request) -> Service:
    """The service behind the app."""
    service: Service = request.app.state.service
    return service
