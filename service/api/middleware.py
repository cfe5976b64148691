"""Around every request, as plain ASGI: identity, times, the access log, and how much body it may bring."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, MemoryFull
from service.inference.pipeline import Timings
from service.service import Service

log = logging.getLogger("service.access")
REQUEST_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
INFERENCE = frozenset({"/embed", "/classify", "/reconstruct"})
DISCARD_S = 2.0


@dataclass
class RequestRecord:
    """What is known of one request, for its log line, its headers and the metrics."""

    id: str
    endpoint: str
    started: float = field(default_factory=time.monotonic)
    timings: Timings = field(default_factory=Timings)
    read: float = 0.0
    images: int = 0
    status: int = 499
    """As long as nothing was answered: a client that left."""
    error: str = ""
    timing: str = ""
    """The Server-Timing header, once it is written."""

    def server_timing(self) -> str:
        """The Server-Timing header: milliseconds by stage, those that were passed."""
        spent = {"read": self.read, **vars(self.timings), "total": time.monotonic() - self.started}
        return ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in spent.items() if seconds)


def record_of(scope: Scope) -> RequestRecord:
    """The record of the request of `scope`."""
    record: RequestRecord = scope["state"]["record"]
    return record


class ObservabilityMiddleware:
    """Gives each request an id and writes down how it went. Probes, metrics and pages stay out of log and metrics."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Around `app`."""
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        record = RequestRecord(
            given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex, path if path in INFERENCE else ""
        )
        scope.setdefault("state", {})["record"] = record

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                own = {"x-request-id": record.id, "traceparent": headers.get("traceparent")}
                if record.endpoint:
                    own["server-timing"] = record.timing = record.server_timing()
                added = [(name.encode(), said.encode("latin-1")) for name, said in own.items() if said]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        if not record.endpoint:
            await self._app(scope, receive, send_with_headers)
            return
        # What a drain refuses must not prolong it, or clients that try again and again could for all its time.
        counts = self._service.state != "draining"
        self._service.budgets.requests.take(counts)
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            record.status = 500
            raise
        finally:
            self._service.budgets.requests.give(counts)
            self._write_down(scope, record, headers)

    def _write_down(self, scope: Scope, record: RequestRecord, headers: Headers) -> None:
        seconds, metrics = time.monotonic() - record.started, self._service.metrics
        metrics.requests.labels(record.endpoint, str(record.status)).inc()
        metrics.request_duration.labels(record.endpoint).observe(seconds)
        if record.read:
            metrics.stage_duration.labels("read").observe(record.read)
        if record.error:
            metrics.rejected.labels(record.error).inc()
        if record.status == 200:
            metrics.images.labels(record.endpoint).inc(record.images)
        if log.isEnabledFor(logging.INFO):
            facts = {
                "method": scope["method"],
                "path": record.endpoint,
                "query": scope["query_string"].decode("latin-1"),
                "status": record.status,
                "error": record.error,
                "images": record.images,
                "ms": round(1000 * seconds, 1),
                "timing": record.timing or record.server_timing(),
                "request_id": record.id,
                "traceparent": headers.get("traceparent", ""),
                "client": (scope.get("client") or [""])[0],
            }
            log.info("request", extra={"facts": {name: fact for name, fact in facts.items() if fact or name == "ms"}})


class BodyLimitMiddleware:
    """Counts bodies as they arrive: each against MAX_BODY_MB, all together against MAX_INFLIGHT_MB.

    A body with a Content-Length is counted whole before its first byte is read; one without, chunk by chunk. What is
    refused is never held. The bytes count until the request is answered.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Around `app`."""
        self._app = app
        self._max_body = service.settings.max_body_bytes
        self._budget = service.budgets.bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        reserved = received = 0
        complete = False

        def reserve(total: int) -> None:
            nonlocal reserved
            if total > self._max_body:
                raise BodyTooLarge(f"the body has more than {self._max_body} bytes", limit=self._max_body)
            if total > reserved:
                if not self._budget.take(total - reserved):
                    raise MemoryFull("too many bytes are being received at once", limit=self._budget.limit)
                reserved = total

        async def counted() -> Message:
            nonlocal received, complete
            if not received and declared.isdecimal():
                reserve(int(declared))
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                reserve(received)
            return message

        async def discard_rest() -> None:
            nonlocal complete
            while not complete:
                message = await receive()
                complete = message["type"] == "http.disconnect" or not message.get("more_body", False)

        async def send_after_body(message: Message) -> None:
            # Closing a connection on a client that is still sending can cost it the answer: let it finish, unheld.
            starts = message["type"] == "http.response.start"
            if starts and not complete and Headers(raw=message["headers"]).get("connection") == "close":
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(discard_rest(), DISCARD_S)
            await send(message)

        try:
            await self._app(scope, counted, send_after_body)
        finally:
            self._budget.give(reserved)
