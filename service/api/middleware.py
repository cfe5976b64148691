"""Middleware for every request, in plain ASGI: request id, access log and metrics, and the request line."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.access_log import client_address, redact_query
from service.inference.timings import Timings
from service.service import Service
from service.tracing.traceparent import parse_traceparent

log = logging.getLogger("service.access")
REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
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
