"""The spans of requests and batches, made with OpenTelemetry's SDK.

    POST /embed (server)                         one trace per request, or a part of the caller's trace
      read                                       its body
      decode                                     one span per image
      queue, inference                           one span each per batch that holds images of the request
      render                                     where the answer is written in the pool
    batch                                        a trace of its own, with links to the requests whose images it holds

`inference` has a link to its batch. A request is sampled or not when its server span begins; everything after that,
in the engine process too, follows this decision. Names and attributes of the server span are those of the semantic
conventions for HTTP; attributes of our own begin with `mae.`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, TraceFlags, set_span_in_context
from opentelemetry.trace import Tracer as OpenTelemetryTracer
from opentelemetry.trace.status import StatusCode
from starlette.datastructures import Headers
from starlette.types import Scope

from service.errors import ClientGone
from service.tracing.images import TracedImage, error_name

log = logging.getLogger(__name__)
METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
"""The methods that the semantic conventions know; a name of the client's own never becomes one of a span."""
CLOSE_S = 3.0
"""Seconds that the last spans of a process get to be sent."""


class Tracer:
    """Records the spans of one process."""

    def __init__(self, processors: Sequence[SpanProcessor], resource: Resource | None = None) -> None:
        """Hands all spans to `processors`; OTEL_TRACES_SAMPLER decides which requests have spans.

        Args:
            processors: of OpenTelemetry's SDK; `close` shuts them down.
            resource: describes the service; by default as OTEL_RESOURCE_ATTRIBUTES does.
        """
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        # For all that belongs to a request which is sampled already.
        details = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        for processor in processors:
            self._provider.add_span_processor(processor)
            details.add_span_processor(processor)
        release = version("mae-serve")
        self._requests = self._provider.get_tracer("mae-serve", release)
        self._details = details.get_tracer("mae-serve", release)

    def start_request(self, scope: Scope, route: str, request_id: str, query: str, client: str) -> RequestTrace:
        """Begins the server span of a request, as a child of the span that its headers name.

        Args:
            scope: of the request.
            route: the path of its route, with `{…}` for path parameters.
            request_id: its id in the log.
            query: its query without what must not be kept.
            client: the address of its client; empty if it is not known.
        """
        headers = Headers(scope=scope)
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        span = self._requests.start_span(
            f"{'HTTP' if method == '_OTHER' else method} {route}",
            propagate.extract(headers, Context(), _HEADERS),
            SpanKind.SERVER,
            {
                **_describe_request(scope, headers, method, query, client),
                "http.route": route,
                "mae.request_id": request_id,
            },
        )
        return RequestTrace(span, self._details)

    def record_batch(self, operation: str, lane: int, images: Sequence[TracedImage], taken_at: float) -> None:
        """Records a batch that has just ended, and for each of its sampled requests the time in queue and batch.

        Args:
            operation: what the engine did.
            lane: the lane that ran the batch.
            images: all images of the batch.
            taken_at: the time when they left the queue, in seconds of time.monotonic().
        """
        requests = _by_request(images)
        if not requests:
            return
        parents = {traceparent: _span_context(traceparent) for traceparent in requests}
        start, end = _epoch_ns(taken_at), time.time_ns()
        batch = self._details.start_span(
            "batch",
            Context(),
            attributes={"mae.operation": operation, "mae.images": len(images), "mae.lane": lane},
            links=[Link(parent) for parent in parents.values()],
            start_time=start,
        )
        for traceparent, own in requests.items():
            self._record_wait(parents[traceparent], own, start)
            inference = self._details.start_span(
                "inference",
                _as_parent(parents[traceparent]),
                attributes={"mae.operation": operation, "mae.images": len(own), "mae.batch.images": len(images)},
                links=[Link(batch.get_span_context())],
                start_time=start,
            )
            _end(inference, _first_error(own), end)
        _end(batch, _first_error(images), end)

    def record_dropped(self, images: Sequence[TracedImage]) -> None:
        """Records the wait of images that have just left the queue and enter no batch."""
        for traceparent, own in _by_request(images).items():
            self._record_wait(_span_context(traceparent), own, time.time_ns())

    def _record_wait(self, parent: SpanContext, images: Sequence[TracedImage], end: int) -> None:
        start = _epoch_ns(min(image.queued_at for image in images))
        attributes = {"mae.images": len(images)}
        queue = self._details.start_span("queue", _as_parent(parent), attributes=attributes, start_time=start)
        _end(queue, "", end)

    def close(self) -> None:
        """Sends the last spans, for at most CLOSE_S. This blocks: call it in a thread."""
        shutdown = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        shutdown.start()
        shutdown.join(CLOSE_S)
        if shutdown.is_alive():
            log.warning("the last spans were not sent within %g s", CLOSE_S)


class RequestTrace:
    """The spans of one request."""

    def __init__(self, span: Span, tracer: OpenTelemetryTracer) -> None:
        """For a request whose server span is `span`; `tracer` starts the spans below it."""
        self._span = span
        self._tracer = tracer
        self._is_sampled = span.is_recording()
        self._context = set_span_in_context(span, Context())
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        """The header by which other services continue this trace."""

    @property
    def sampled_traceparent(self) -> str:
        """`traceparent` for spans that others record; empty if the request is not sampled."""
        return self.traceparent if self._is_sampled else ""

    @contextmanager
    def stage(self, name: str, **attributes: int) -> Iterator[None]:
        """A span of the time inside the context. An exception ends it with an error."""
        if not self._is_sampled:
            yield
            return
        span = self._tracer.start_span(
            name, self._context, attributes={f"mae.{key}": value for key, value in attributes.items()}
        )
        error = ""
        try:
            yield
        except BaseException as cause:
            error = error_name(cause)
            raise
        finally:
            _end(span, error)

    def end(self, status: int, error: str, images: int) -> None:
        """Ends the server span.

        Args:
            status: of the response; 499 if the client has gone before there was one.
            error: the code of the error in the response, or an empty string.
            images: number of images in the request.
        """
        if self._is_sampled:
            self._span.set_attribute("mae.images", images)
            if status != ClientGone.status:
                self._span.set_attribute("http.response.status_code", status)
            if error:
                self._span.set_attribute("mae.error.code", error)
        is_failure = status >= 499  # a 4xx is no error of the server, as the conventions say
        _end(self._span, (error or str(status)) if is_failure else "")


class _HeadersGetter(Getter[Headers]):
    def get(self, carrier: Headers, key: str) -> list[str] | None:
        return carrier.getlist(key) or None

    def keys(self, carrier: Headers) -> list[str]:
        return carrier.keys()


_HEADERS = _HeadersGetter()


def _describe_request(scope: Scope, headers: Headers, method: str, query: str, client: str) -> Mapping[str, Any]:
    """The attributes of a server span that are known when it begins."""
    address, port = _server_address(headers.get("host", ""))
    attributes = {
        "http.request.method": method,
        "http.request.method_original": scope["method"] if method == "_OTHER" else None,
        "url.path": scope["path"],
        "url.query": query or None,
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version"),
        "server.address": address,
        "server.port": port,
        "client.address": client or None,
        "user_agent.original": headers.get("user-agent"),
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _server_address(host: str) -> tuple[str | None, int | None]:
    """Address and port of the header Host; None where it has none that is valid."""
    try:
        url = urlsplit(f"//{host}")
        return url.hostname, url.port
    except ValueError:
        return None, None


def _by_request(images: Sequence[TracedImage]) -> dict[str, list[TracedImage]]:
    """The images of each sampled request, by its `traceparent`."""
    requests: dict[str, list[TracedImage]] = {}
    for image in images:
        if image.traceparent:
            requests.setdefault(image.traceparent, []).append(image)
    return requests


def _first_error(images: Sequence[TracedImage]) -> str:
    return next((image.error for image in images if image.error), "")


def _span_context(traceparent: str) -> SpanContext:
    """The span that one of our own `traceparent`s names."""
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=TraceFlags(int(flags, 16)))


def _as_parent(context: SpanContext) -> Context:
    return set_span_in_context(NonRecordingSpan(context), Context())


def _epoch_ns(monotonic_s: float) -> int:
    """Nanoseconds since 1970 of a time in seconds of time.monotonic()."""
    return min(_clock_offset() for _ in range(3))[1] + int(monotonic_s * 1e9)


def _clock_offset() -> tuple[int, int]:
    """The uncertainty and the value of the wall clock minus the monotonic clock, in nanoseconds.

    The uncertainty is large where the thread is interrupted between the clocks.
    """
    before, wall, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
    return after - before, wall - (before + after) // 2


def _end(span: Span, error: str, end: int | None = None) -> None:
    if error:
        span.set_attribute("error.type", error)
        span.set_status(StatusCode.ERROR)
    span.end(end)
