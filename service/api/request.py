"""Admission, body, deadline and disconnect of inference requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from hashlib import sha256
from typing import Any, Self, TypeVar

from starlette.requests import Request

from service.api.bodies import ImagesBody, read_images
from service.api.middleware import RequestRecord, record_of
from service.errors import ClientGone, DeadlinePassed, RequestStalled, ServiceError, TooManyConnections, UnsupportedType
from service.inference.images import Image, ImageRequest
from service.inference.limits import charge_images
from service.inference.pipeline import Pipeline
from service.service import Service

T = TypeVar("T")
ReadBody = Callable[[str, AsyncIterator[bytes]], Awaitable[ImagesBody]]
"""Reads a body from its Content-Type (empty if there is none) and its pieces."""


class RequestContext:
    """An inference request that the service has admitted.

    All routes check in one order, so that a request with several faults gets the same error from each: key and query
    (both before the route is called), the state of the service (this constructor), the abilities of the model, Accept,
    then the length and the content of the body (`read_body`), the images, the mask.

    Attributes:
        pipeline: the pipeline to the engine.
        record: describes the request for the log and the metrics.
        max_images: MAX_IMAGES.
        deadline: the time by which the answer must be ready, in seconds of time.monotonic().
    """

    def __init__(self, request: Request) -> None:
        """Admits `request`.

        Raises:
            NotReady, Draining, EngineLost: the service takes no new work.
            TooManyConnections: the connection is one that only probes may use.
        """
        self._service = service = service_of(request)
        self.pipeline: Pipeline = service.pipeline
        if request.scope["state"].get("is_reserve"):
            raise TooManyConnections("as many connections are open as MAX_CONNECTIONS allows")
        self.record: RequestRecord = record_of(request.scope)
        self.deadline = self.record.started + service.settings.request_timeout_s
        self.max_images = service.settings.max_images
        self._request = request

    def end_after(self, seconds: float) -> None:
        """Moves the deadline to `seconds` after the headers of the request, if it is later than that."""
        self.deadline = min(self.deadline, self.record.started + seconds)

    async def read_body(self, takes_mask: bool = False, skips: bool = False) -> ImagesBody:
        """Reads the body; `takes_mask` and `skips` are those of `read_images`.

        Raises:
            BodyTooLarge, MemoryFull: the body is too long, alone or with the others that are being received.
            UnsupportedType: the body is compressed, or as in `read_images`.
            MalformedBody, NoImages, TooManyImages, InvalidParameter: as in `read_images`.
            RequestStalled: the body has stopped to arrive.
            DeadlinePassed: the body has not arrived in time.
            Draining, EngineLost: the process ends before the body has arrived.
            ClientGone: the client has closed the connection.
        """
        return await self.read_body_by(
            lambda content_type, chunks: read_images(content_type, chunks, self.max_images, takes_mask, skips)
        )

    async def read_body_by(self, read: ReadBody) -> ImagesBody:
        """Reads the body by `read`, for a protocol with a body of its own; raises what it raises, else as `read_body`.

        The images that `read` finds may be no more than MAX_IMAGES, which it checks itself.
        """
        content_type = self._request.headers.get("content-type", "")
        body = await self._read(lambda chunks: read(content_type, chunks))
        self.record.images = len(body.images)
        return body

    async def read_bytes(self) -> bytes:
        """Reads the body as it is, whatever its type is said to be.

        Raises:
            ServiceError: as `read_body`, but for what is in the body.
        """

        async def join(chunks: AsyncIterator[bytes]) -> bytes:
            return b"".join([chunk async for chunk in chunks])

        return await self._read(join)

    async def _read(self, read: Callable[[AsyncIterator[bytes]], Awaitable[T]]) -> T:
        """Runs `read` on the body as it arrives, within the time that it may take."""
        start = time.monotonic()
        encoding = self._request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            raise UnsupportedType(f"the body has the Content-Encoding {encoding}: send it as it is", encoding=encoding)
        with self.record.timings.record_span("read"):
            async with _BodyTimeout(self._service, self.deadline) as timeout:
                content = await read(self._receive_chunks(timeout))
        self.record.read = time.monotonic() - start
        return content

    async def _receive_chunks(self, timeout: _BodyTimeout) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        timeout.allow_stall()
        while (message := await self._request.receive())["type"] != "http.disconnect":
            more = message.get("more_body", False)
            if more:
                timeout.allow_stall()
            else:
                timeout.allow_until_deadline()
            if chunk := message.get("body", b""):
                yield chunk
            if not more:
                return
        raise ClientGone("the client closed the connection while it was sending")

    def images_to_infer(
        self, images: Sequence[Image], skipped: dict[int, ServiceError] | None = None, caches: bool = True
    ) -> ImageRequest:
        """The images of this request for the pipeline, counted for the request's key.

        Args:
            images: as they were in the body.
            skipped: that of `ImageRequest`.
            caches: results may come from the cache, and go there.

        Raises:
            KeyRateExceeded: the request's key has no room for so many images now.
        """
        if budget := self._request.scope["state"].get("key_budget"):
            charge_images(budget, len(images))
        cache_key = self._cache_key() if caches else None
        return ImageRequest(images, self.record.timings, self.deadline, skipped, cache_key)

    def _cache_key(self) -> bytes | None:
        """Names the owner of this request's results in the cache; None without CACHE_MB.

        Results are kept for each API key apart: otherwise the time of an answer would tell one client whether another
        one has sent the same image.
        """
        if not self._service.settings.cache_bytes:
            return None
        owner: str = getattr(self._request.state, "api_key", "")
        return sha256(owner.encode()).digest()

    async def run_while_client_waits(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` and returns its result; cancels it at the deadline, or when the client closes the connection.

        Call it after `read_body`: it takes over the reading side of the connection.

        Raises:
            DeadlinePassed: the deadline came first.
            ClientGone: the client closed the connection first.
            Draining, EngineLost: the process is to end first.
        """
        result, disconnect = asyncio.create_task(work), asyncio.create_task(self._wait_for_disconnect())
        interrupt = disconnect.cancel
        self._service.interrupts.add(interrupt)
        try:
            seconds_left = self.deadline - time.monotonic()
            await asyncio.wait({result, disconnect}, timeout=seconds_left, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            if disconnect.cancelled():
                raise self._service.end_error
            if disconnect.done():
                disconnect.result()  # raises an error of the connection
                raise ClientGone("the client closed the connection while it was waiting")
            raise DeadlinePassed("the answer was not ready in time")
        finally:
            self._service.interrupts.discard(interrupt)
            disconnect.cancel()
            if result.cancel():
                await asyncio.wait({result})  # until then it may hold a place in the queue

    async def _wait_for_disconnect(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass


class _BodyTimeout:
    """Ends the wait for a body: when it stalls, at the request's deadline, or when the process is to end."""

    def __init__(self, service: Service, deadline: float) -> None:
        """`deadline` is in seconds of time.monotonic()."""
        self._service = service
        self._deadline = deadline
        self._stall_s = service.settings.body_stall_s
        self._stalled = False
        """Whether the end of the wait would mean that the body has stalled."""
        self._timeout = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()

    def allow_stall(self) -> None:
        """The next piece of the body must arrive within BODY_STALL_S, and before the deadline."""
        seconds_left = self._deadline - time.monotonic()
        self._stalled = self._stall_s < seconds_left
        self._timeout.reschedule(self._loop.time() + min(self._stall_s, seconds_left))

    def allow_until_deadline(self) -> None:
        """The body has arrived, and must be parsed before the deadline."""
        self._stalled = False
        self._timeout.reschedule(self._loop.time() + self._deadline - time.monotonic())

    def _interrupt(self) -> None:
        self._timeout.reschedule(self._loop.time())

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._service.interrupts.add(self._interrupt)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._service.interrupts.discard(self._interrupt)
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            if self._service.exit_code is not None:
                raise self._service.end_error from None
            if self._stalled:
                raise RequestStalled(
                    f"no byte of the body has arrived for {self._stall_s:g} s (BODY_STALL_S)"
                ) from None
            raise DeadlinePassed("the body did not arrive in time") from None


def service_of(request: Request) -> Service:
    """The service behind the app."""
    service: Service = request.app.state.service
    return service
