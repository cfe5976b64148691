"""HTTP/1.1 connections: uvicorn's protocol, with bounds, and with what RFC 9112 asks for beyond it."""

from __future__ import annotations

import asyncio
import socket
import uuid
from typing import Any

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.connection_limit import ConnectionLimit
from service.error_formats import error_body, error_headers
from service.errors import (
    HeadersTooLarge,
    MalformedRequest,
    RequestStalled,
    ServiceError,
    UnsupportedTransferCoding,
    UriTooLong,
)
from service.send_timeout import SendTimeout

MAX_HEADER_BYTES = 64 * 1024
"""Most bytes of a request line and headers; the trailers of a chunked body count as headers."""
RESERVE_TIMEOUT_S = 1.0
"""Time for the headers of a request on a connection above MAX_CONNECTIONS."""
LAST_HEADERS_S = 0.3
"""The same when the process is to end, on a connection that has not had a request yet."""
FIRST_CHECK_S = 0.05
"""How soon to look whether a client that has ended its side of a connection still reads."""


def refusal(error: ServiceError, target: bytes) -> bytes:
    """The whole answer that refuses a request for `target` with an error that closes the connection."""
    path = target.partition(b"?")[0].decode("latin-1")
    content, own = orjson.dumps(error_body(error, path)), error_headers(error, path)
    headers = {"content-type": "application/json", "content-length": str(len(content)), **own}
    headers["x-request-id"] = uuid.uuid4().hex
    lines = [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
    return b"".join([STATUS_LINE[error.status], *lines, b"\r\n", content])


class HttpProtocol(HttpToolsProtocol):
    """One connection.

    - An `Upgrade` is ignored, as RFC 9110, section 7.8, allows: the request is served over HTTP/1.1. The parser would
      take everything behind the headers for another protocol and lose the body.
    - Headers that are not complete in time are answered 408, and the connection is closed. A connection on which
      nothing arrives is closed without an answer.
    - Headers of more than `MAX_HEADER_BYTES` are answered 431, a target of more bytes 414, what is no HTTP/1.1 or has
      not one Host 400, a transfer coding other than chunked 501, and the connection is closed.
    - A connection above `MAX_CONNECTIONS` gets `RESERVE_TIMEOUT_S` for one request, which says so in its state.
    - A client that ends its side of the connection behind a request is answered, if it still reads: an interim response
      (100 Continue, which every client of HTTP/1.1 must pass over) makes the kernel of one that has gone say so.
    - After an answer that did not wait for the body, the rest of the body must go on arriving, or the connection is
      closed. A body that somebody reads is the reader's concern.
    - A client that stops reading its answer loses the connection.
    """

    def __init__(self, limit: ConnectionLimit, header_timeout_s: float, body_stall_s: float, **uvicorn: Any) -> None:
        """Not connected yet.

        Args:
            limit: on the connections of this process.
            header_timeout_s: time for the headers of a request, from the connection or from their first byte.
            body_stall_s: longest pause within the rest of a body that nobody reads, and within an answer.
            uvicorn: the arguments of uvicorn's protocol.
        """
        super().__init__(**uvicorn)
        self.url = b""  # until there is one
        self._limit = limit
        self._header_timeout_s = header_timeout_s
        self._body_stall_s = body_stall_s
        self._send_timeout = SendTimeout(body_stall_s)
        self._timer: asyncio.TimerHandle | None = None
        """Ends the wait for headers, or for the rest of a body that nobody reads."""
        self._in_headers = False
        """Whether the headers of a request have begun and are not complete."""
        self._in_body = False
        """Whether the headers are complete and the body is not."""
        self._header_bytes = 0
        """Of the lines of the current request that are complete."""
        self._unfinished_bytes = 0
        """Of the pieces since one last brought a part of a body, or began or ended headers or a body."""
        self._is_refused = False
        """Whether nothing that arrives matters any more."""
        self._is_reserve = False
        """Whether the connection is one above MAX_CONNECTIONS."""
        self._is_last = False
        """Whether the connection is closed after the current request, whatever its answer says."""
        self._hosts = 0
        """Number of Host headers of the current request."""
        self._coding = b""
        """The transfer coding of the current request."""
        self._running: RequestResponseCycle | None = None
        """The request that is being answered; requests behind it wait in uvicorn's pipeline."""

    @property
    def is_answering(self) -> bool:
        """Whether a request is being answered."""
        return self._running is not None and not self._running.response_complete

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Waits for the headers of the first request."""
        super().connection_made(transport)  # type: ignore[arg-type]  # as uvicorn declares it
        self.transport.set_write_buffer_limits(high=0)  # to hear of every byte that a client leaves unread
        self._is_reserve = self._is_last = self._limit.open(self)
        seconds = min(RESERVE_TIMEOUT_S, self._header_timeout_s) if self._is_reserve else self._header_timeout_s
        self._timer = self.loop.call_later(seconds, self._on_headers_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing any more; nobody reads the answers to requests that were sent one behind the other."""
        self._limit.close(self)
        self._stop_timer()
        self._send_timeout.stop()
        self.pipeline.clear()
        if self._running is not None and self.is_answering:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's always closes the connection
        """The client sends nothing more; returns whether it gets an answer."""
        waits = self.is_answering and not (self._in_headers or self._in_body or self._is_refused)
        if not waits or self.scope["http_version"] != "1.1":
            return False  # older clients know no interim responses
        self.cycle.keep_alive = False
        if not self.pipeline and not self.cycle.response_started:
            self.transport.write(STATUS_LINE[100] + b"\r\n")
        self._timer = self.loop.call_later(FIRST_CHECK_S, self._check_reader, FIRST_CHECK_S)
        return True

    def _check_reader(self, waited_s: float) -> None:
        """Closes the connection of a client that does not read any more: its kernel has refused what was written."""
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(2 * waited_s, self._check_reader, 2 * waited_s)

    def pause_writing(self) -> None:
        """The kernel takes no more of an answer, since the client does not read."""
        super().pause_writing()
        self._send_timeout.start(self.loop, self.transport)

    def resume_writing(self) -> None:
        """The kernel has taken all of it."""
        self._send_timeout.stop()
        super().resume_writing()

    def shutdown(self) -> None:
        """Ends the connection; a request that is already on the way to a new one is still answered."""
        self._is_last = True
        if self.cycle is None and not self._is_refused and not self.transport.is_closing():
            self._stop_timer()
            self._timer = self.loop.call_later(min(LAST_HEADERS_S, self._header_timeout_s), self._on_headers_late)
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Parses what has arrived; a request with an `Upgrade` is parsed again without it."""
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        self._unfinished_bytes += len(data)
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self.parser.get_method() == b"CONNECT":  # names no resource of ours, and no header asks for it
                    self._refuse(MalformedRequest("CONNECT is not served"))
                    return
                data = self._headers_without_upgrade() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own parser
            except httptools.HttpParserError as error:
                reason = error.__context__
                self._refuse(reason if isinstance(reason, ServiceError) else MalformedRequest("this is no HTTP/1.1"))
                return
            else:
                break
        if self._unfinished_bytes > MAX_HEADER_BYTES and (self._in_headers or self._in_body):
            self._refuse(self._too_large())  # the parser keeps a line until it is complete
        elif self._in_headers:
            if self._timer is None:  # they may take so long in all, however many pieces they come in
                self._timer = self.loop.call_later(self._header_timeout_s, self._on_headers_late)
        elif self.cycle is not None and self.cycle.response_complete:
            self._wait_after_answer()

    def on_message_begin(self) -> None:
        """The first byte of a request has arrived."""
        self._in_headers, self._in_body = True, False
        self._header_bytes = self._unfinished_bytes = self._hosts = 0
        self._coding = b""
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the request's target has arrived."""
        self._header_bytes += len(url)
        if self._header_bytes > MAX_HEADER_BYTES:
            message = f"the target of the request has more than {MAX_HEADER_BYTES} bytes"
            raise UriTooLong(message, max_bytes=MAX_HEADER_BYTES)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or a trailer has arrived."""
        self._header_bytes += len(name) + len(value) + len(": \r\n")
        if self._header_bytes > MAX_HEADER_BYTES:
            raise self._too_large()
        super().on_header(name, value)
        if self._in_headers:  # a trailer says nothing of the message
            lower = self.headers[-1][0]
            if lower == b"host":
                self._hosts += 1
            elif lower == b"transfer-encoding":
                self._coding += b"," + value.strip().lower() if self._coding else value.strip().lower()

    def on_headers_complete(self) -> None:
        """Starts the request, unless it is parsed again without its `Upgrade`."""
        if self.parser.should_upgrade():
            return
        if self._hosts > 1 or (not self._hosts and self.parser.get_http_version() == "1.1"):
            raise MalformedRequest(f"a request of HTTP/1.1 has one Host header, and this one has {self._hosts}")
        if self._coding not in (b"", b"chunked"):
            raise UnsupportedTransferCoding("of the transfer codings only chunked is known here")
        self._in_headers, self._in_body = False, True
        self._unfinished_bytes = 0
        self._stop_timer()
        if self._is_reserve:
            self.scope["state"]["is_reserve"] = True
        super().on_headers_complete()
        if self._is_last:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A part of the body has arrived."""
        self._unfinished_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The body is complete."""
        if self.parser.should_upgrade():
            return
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Goes on with the connection after an answer."""
        super().on_response_complete()
        if self._in_body:
            self._wait_after_answer()

    def _wait_after_answer(self) -> None:
        """Waits for the next piece of a body that nobody reads, or for the next request."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        if self._in_body:
            self._timer = self.loop.call_later(self._body_stall_s, self.transport.close)
        elif self.timeout_keep_alive_task is None and not self.pipeline:  # uvicorn stops it at every byte
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _on_headers_late(self) -> None:
        self._timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False  # the request before these headers is still being answered
        elif self._in_headers:
            message = f"the headers did not arrive within {self._header_timeout_s:g} s (HEADER_TIMEOUT_S)"
            self._refuse(RequestStalled(message))
        else:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _too_large(self) -> HeadersTooLarge:
        message = f"the request line and the headers have more than {MAX_HEADER_BYTES} bytes"
        return HeadersTooLarge(message, max_bytes=MAX_HEADER_BYTES)

    def _refuse(self, error: ServiceError) -> None:
        """Answers with an error and closes the connection; an answer that is due before it still comes first."""
        self._stop_timer()
        self._is_refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            if self._in_headers:  # the request before these headers is still being answered
                self.cycle.keep_alive = False
                return
            if self.cycle.response_started:
                self.transport.close()
                return
            if self.cycle is not self._running:  # answers to earlier requests come first
                self.pipeline.popleft()
                earlier = self.pipeline[0][0] if self.pipeline else self._running
                if earlier is not None:
                    earlier.keep_alive = False
                return
            self.cycle.disconnected = True  # whoever answers it is too late
            self.cycle.message_event.set()
        self.logger.warning("a request is refused: %s", error.message)
        self.transport.write(refusal(error, self.url))  # the target as far as it has arrived
        self.transport.close()

    def _headers_without_upgrade(self) -> bytes:
        """The request line and the headers of the current request, without those that ask for another protocol."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                value = b", ".join(token for token in tokens if token.lower() not in (b"upgrade", b"http2-settings"))
            if name not in (b"upgrade", b"http2-settings"):
                lines.append(b"%s: %s" % (name, value))
        return b"\r\n".join([*lines, b"", b""])
