"""Middleware for every request, in plain ASGI: request id, access log and metrics, and the limits on bodies."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.access_log import client_address, redact_query
from service.errors import BodyTooLarge, MemoryFull, RequestStalled
from service.inference.timings import Timings
from service.service import Service
from service.tracing.traceparent import parse_traceparent

log = logging.getLogger("service.access")
REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
# How long a client may go on sending a body that nobody reads before its connection is closed.
DISCARD_S = 2.0
LAST_DISCARD_S = 0.3
"""The same when the process is to end; uvicorn cuts off after a second what is not answered then."""
SLASHES = re.compile("/{2,}")


@dataclass
class RequestRecord:
    """One request as the access log, the metrics and the headers of its response describe it."""

    id: str
    endpoint: str
    """The path of its inference route, with `{…}` for path parameters; empty for other routes."""
    started: float = field(default_factory=time.monotonic)
    """The time when its headers arrived, in seconds of time.monotonic()."""
    timings: Timings = field(default_factory=Timings)
    """Seconds of each stage between body and response."""
    read: float = 0.0
    """Seconds that reading the body took."""
    images: int = 0
    """Number of images in its body."""
    status: int = 499
    """Status of the response; 499 until it has begun, for a client that closes the connection before."""
    error: str = ""
    """The code of the error that the response reports; empty if there is none."""
    traceparent: str = ""
    """The request's own `traceparent` if it is valid, or that of its span where requests are traced."""
    query: str = ""
    """Its query, as log and traces may show it."""
    client: str = ""
    """The address of its client; empty if it is not known."""
    timing: str = ""
    """The Server-Timing header that was sent."""

    def server_timing(self) -> str:
        """The Server-Timing header: milliseconds of each stage that the request has passed, and in total."""
        seconds_by_stage = {"read": self.read, **self.timings.seconds(), "total": time.monotonic() - self.started}
        return ", ".join(f"{stage};dur={1000 * seconds:.1f}" for stage, seconds in seconds_by_stage.items() if seconds)


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request that `scope` belongs to."""
    record: RequestRecord = scope["state"]["record"]
    return record


def path_of(scope: Scope) -> str:
    """The path of the request that `scope` belongs to, without the prefix of a proxy."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class ObservabilityMiddleware:
    """Gives each request an id; counts, times and logs the requests to inference routes.

    Requests for probes, /metrics and pages are neither logged nor counted. The endpoint in log and metrics is the path
    of the route, never the path as the client wrote it: otherwise clients could make labels without end.
    """

    def __init__(
        self, app: ASGIApp, service: Service, routes: Iterable[Route], parameters: Mapping[str, Collection[str]]
    ) -> None:
        """Wraps `app`; `routes` are the inference routes, `parameters` the names of their parameters by path."""
        self._app = app
        self._service = service
        self._parameters = parameters
        routes = tuple(routes)
        self._exact = frozenset(route.path_format for route in routes if not route.param_convertors)
        self._templates = tuple(route for route in routes if route.param_convertors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        record = RequestRecord(request_id, self._match(scope))
        record.client = client_address(scope.get("client"))
        record.traceparent = parse_traceparent(headers.get("traceparent", ""))
        if record.endpoint:
            record.query = redact_query(scope["query_string"], self._parameters[record.endpoint])
            if (tracer := self._service.tracer) is not None:
                trace = record.timings.trace = tracer.start_request(
                    scope, record.endpoint, record.id, record.query, record.client
                )
                record.traceparent = trace.traceparent
        scope.setdefault("state", {})["record"] = record

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                added = {"x-request-id": record.id, "traceparent": record.traceparent}
                if record.endpoint:
                    added["server-timing"] = record.timing = record.server_timing()
                pairs = [(name.encode(), value.encode("latin-1")) for name, value in added.items() if value]
                message["headers"] = [*message["headers"], *pairs]
            await send(message)

        if not record.endpoint:
            await self._app(scope, receive, send_with_headers)
            return
        # A drain waits for the requests that are counted here. It must not wait for the requests that it refuses:
        # clients that try again and again would prolong it to DRAIN_TIMEOUT_S.
        is_counted = self._service.state != "draining"
        if is_counted:
            self._service.budgets.requests.take(1)
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            record.status = 500
            raise
        finally:
            if is_counted:
                self._service.budgets.requests.give(1)
            self._observe(scope, record)

    def _match(self, scope: Scope) -> str:
        """The path of the inference route that `scope` asks for, or ""; puts path parameters into the scope.

        A preflight request of a browser (OPTIONS) is no inference.
        """
        if scope["method"] == "OPTIONS":
            return ""
        path = path_of(scope)
        if path in self._exact:
            return path
        for route in self._templates:
            if match := route.path_regex.match(path):
                parameters: dict[str, Any] = match.groupdict()
                scope["path_params"] = {
                    name: route.param_convertors[name].convert(value) for name, value in parameters.items()
                }
                return route.path_format
        return ""

    def _observe(self, scope: Scope, record: RequestRecord) -> None:
        """Counts an answered request, and logs it."""
        seconds, metrics = time.monotonic() - record.started, self._service.metrics
        metrics.requests.labels(record.endpoint, str(record.status)).inc()
        metrics.request_duration.labels(record.endpoint).observe(seconds)
        metrics.processing_duration.labels(record.endpoint).observe(seconds - record.read)
        if record.read:
            metrics.stage_duration.labels("read").observe(record.read)
        if record.error:
            metrics.rejected.labels(record.error).inc()
        if record.status == 200:
            metrics.images.labels(record.endpoint).inc(record.images)
        if log.isEnabledFor(logging.INFO):
            fields = {
                "method": scope["method"],
                "path": record.endpoint,
                "query": record.query,
                "status": record.status,
                "error": record.error,
                "images": record.images,
                "ms": round(1000 * seconds, 1),
                "timing": record.timing or record.server_timing(),
                "request_id": record.id,
                "traceparent": record.traceparent,
                "client": record.client,
            }
            present = {name: value for name, value in fields.items() if value or name == "ms"}
            log.info("request", extra={"fields": present})
        if (trace := record.timings.trace) is not None:
            trace.end(record.status, record.error, record.images)


class RequestLineMiddleware:
    """Lets every path be written with slashes at its end or doubled, and every GET route answer HEAD.

    The path is served as if it had been written without them. A redirect would be worse: many clients do not follow it,
    or follow it without the body, and behind a proxy its address may be wrong.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wraps `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] == "http":
            path = scope["path"]
            if "//" in path or (path[-1:] == "/" and len(path) > 1):
                scope["path"] = SLASHES.sub("/", path).rstrip("/") or "/"
            if scope["method"] == "HEAD":
                await self._app({**scope, "method": "GET"}, receive, _without_body(send))
                return
        await self._app(scope, receive, send)


def _without_body(send: Send) -> Send:
    async def send_headers(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_headers


class BodyLimitMiddleware:
    """Limits each body to MAX_BODY_MB, and all bodies together to MAX_INFLIGHT_MB.

    Bytes are counted as they arrive, so a length that is declared takes room from nobody. A body whose Content-Length
    is too large is refused when the app asks for its first byte: the length of a body that the app never reads does not
    matter, and a body that is too long is never held in memory.
    The bytes count until the request is answered.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Wraps `app`."""
        self._app = app
        self._service = service
        self._max_body = service.settings.max_body_bytes
        self._budget = service.budgets.bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        received = 0
        complete = False

        def require_allowed(length: int) -> None:
            if length > self._max_body:
                raise BodyTooLarge(f"the body has more than {self._max_body} bytes", limit=self._max_body)

        async def receive_and_count() -> Message:
            nonlocal received, complete
            if not received and declared.isdecimal():
                require_allowed(int(declared))
            message = await receive()
            if message["type"] == "http.request":
                complete = not message.get("more_body", False)
                size = len(message.get("body", b""))
                require_allowed(received + size)
                if not self._budget.take(size):
                    raise MemoryFull(
                        "too many bytes of request bodies are being received at once", limit=self._budget.limit
                    )
                received += size
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
            if not complete and message["type"] == "http.response.start" and may_finish(message):
                await self._wait_at_most(DISCARD_S, discard_rest())
            await send(message)

        try:
            await self._app(scope, receive_and_count, send_after_body)
        finally:
            self._budget.give(received)

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
