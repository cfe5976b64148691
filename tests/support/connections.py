"""A connection of the real protocol class, over a transport that only records, with a clock that the test moves."""

import asyncio
import functools
import http.client
import io
import json
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from service.connection_limit import ConnectionLimit
from service.http_protocol import HttpProtocol

HEADER_TIMEOUT_S, BODY_STALL_S, KEEP_ALIVE_S = 10.0, 7.0, 65.0


class Timer:
    """A call that was asked for; cancelled or not."""

    def __init__(self, when: float, call: Callable[[], object]) -> None:
        self.when, self.call, self.cancelled = when, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """The event loop as the protocol uses it: real tasks, and timers of a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.create_task = asyncio.get_running_loop().create_task

    def call_later(self, seconds: float, call: Callable[..., object], *arguments: Any) -> Timer:
        self.timers.append(Timer(self.now + seconds, functools.partial(call, *arguments)))
        return self.timers[-1]

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for timer in [timer for timer in self.timers if timer.when <= self.now]:
            self.timers.remove(timer)
            if not timer.cancelled:
                timer.call()

    @property
    def armed(self) -> list[float]:
        return sorted(timer.when for timer in self.timers if not timer.cancelled)


class Socket:
    """The socket of a transport: its addresses, and what the kernel has learnt about the client."""

    error = 0

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 8000

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 5

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        return self.error


class Transport:
    """Records what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False
        self.paused = False
        self.unread = 0
        self.socket = Socket()

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def set_write_buffer_limits(self, high: int) -> None:
        assert high == 0, "the test says itself when the kernel takes no more"

    def get_write_buffer_size(self) -> int:
        return self.unread

    def get_extra_info(self, name: str) -> Any:
        return {"sockname": ("127.0.0.1", 8000), "peername": ("127.0.0.1", 5), "socket": self.socket}.get(name)

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class WrittenBytes:
    """What http.client reads an answer from."""

    def __init__(self, written: bytes) -> None:
        self.written = written

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.written)


class Connection:
    """One connection to an app that answers with the method, the path and the body, or refuses before the body."""

    def __init__(self, limit: ConnectionLimit | None = None) -> None:
        self.requests: list[tuple[str, str, bytes, dict[str, str]]] = []
        self.marked: list[bool] = []
        """Of each request, whether it came over a connection above the limit."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.loop, self.transport, self.state = Loop(), Transport(), ServerState()
        make = functools.partial(HttpProtocol, limit or ConnectionLimit(100), HEADER_TIMEOUT_S, BODY_STALL_S)
        config = uvicorn.Config(
            self.app,
            http=make,
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            timeout_keep_alive=int(KEEP_ALIVE_S),
        )
        config.load()
        self.protocol = make(config=config, server_state=self.state, app_state={}, _loop=self.loop)
        self.protocol.connection_made(self.transport)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", "refuse" not in scope["path"]
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await self.gate.wait()
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        self.marked.append(scope["state"].get("is_reserve", False))
        self.requests.append((scope["method"], scope["path"], body, headers))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.protocol.data_received(piece)
            for _ in range(5):
                await asyncio.sleep(0)

    def refusal(self) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Status, headers and error of the one answer."""
        response = http.client.HTTPResponse(WrittenBytes(self.transport.written))  # type: ignore[arg-type]
        response.begin()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(response.read())["error"]

    @property
    def answers(self) -> int:
        return self.transport.written.count(b"HTTP/1.1 200 OK")


def request(*headers: str, path: str = "/embed", body: bytes = b"image") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def read_all(client: socket.socket) -> bytes:
    """What the client of a real connection receives until its end; a reset raises ConnectionResetError."""
    received = b""
    with client:
        while piece := client.recv(1 << 16):
            received += piece
    return received
