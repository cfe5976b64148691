"""A connection of the real protocol class, over a transport that only records, with a clock that the test moves."""

import asyncio
import functools
import http.client
import io
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.connection_limit import RESERVED_CONNECTIONS, ConnectionLimit
from service.http_protocol import FIRST_CHECK_S, LAST_HEADERS_S, RESERVE_TIMEOUT_S, HttpProtocol

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


@pytest.fixture
def run() -> Iterator[Callable[[Callable[[Connection], Any]], None]]:
    def run(play: Callable[[Connection], Any]) -> None:
        async def main() -> None:
            connection = Connection()
            await play(connection)
            assert connection.transport.closed or connection.loop.armed, "nothing would ever close the connection"
            connection.protocol.connection_lost(None)
            assert not connection.loop.armed, "a timer outlives its connection"
            for task in list(connection.state.tasks):
                await task

        asyncio.run(asyncio.wait_for(main(), 20))

    yield run


def request(*headers: str, path: str = "/embed", body: bytes = b"image") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


UPGRADES = [
    ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"),
    ("Connection: Upgrade", "Upgrade: websocket"),
    ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZQ=="),
    ("Connection: keep-alive, upgrade", "Upgrade: TLS/1.2"),
    ("connection: UPGRADE", "upgrade: anything/1"),
    ("Upgrade: h2c",),
]


@pytest.mark.parametrize("headers", UPGRADES)
@pytest.mark.parametrize("step", [0, 1, 7])
def test_an_upgrade_is_ignored_and_the_body_is_whole(run: Any, headers: tuple[str, ...], step: int) -> None:
    async def play(connection: Connection) -> None:
        sent = request(*headers, "X-Name: caf\xe9") * 2 + request()
        await connection.send(*([sent[i : i + step] for i in range(0, len(sent), step)] if step else [sent]))
        for _ in range(50):
            await asyncio.sleep(0)
        assert [seen[:3] for seen in connection.requests] == [("POST", "/embed", b"image")] * 3
        assert connection.requests[0][3]["x-name"] == "caf\xe9"
        assert connection.answers == 3 and not connection.transport.closed

    run(play)


def test_an_upgrade_with_a_chunked_body(run: Any) -> None:
    async def play(connection: Connection) -> None:
        upgrade = "Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        head = "POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + upgrade
        await connection.send(head.encode() + b"2\r\nim\r\n3\r\nage\r\n", b"0\r\n\r\n")
        assert [seen[:3] for seen in connection.requests] == [("POST", "/embed", b"image")]

    run(play)


def test_a_connection_that_also_asks_to_be_closed_is_closed(run: Any) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(request("Connection: close, Upgrade", "Upgrade: h2c"))
        assert connection.answers == 1 and connection.transport.closed

    run(play)


@pytest.mark.parametrize("sent", [b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n", b"nonsense\r\n\r\n"])
def test_what_is_no_request_for_a_resource_is_refused(run: Any, sent: bytes) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(sent)
        status, headers, error = connection.refusal()
        assert status == 400 and error["code"] == "malformed_request" and connection.transport.closed
        assert len(headers["x-request-id"]) == 32

    run(play)


LONG = "a" * (64 * 1024 - 200)
TOO_LARGE = {
    "one header": request(f"X: {LONG}{'a' * 200}"),
    "a header that never ends": b"GET / HTTP/1.1\r\nX: " + b"a" * 150_000,
    "a target that never ends": b"GET /" + b"a" * 150_000,
    "a name that never ends": b"GET / HTTP/1.1\r\n" + b"a" * 150_000,
    "many headers": request(*["a: b"] * 11_000),
    "with an upgrade": request("Connection: Upgrade", "Upgrade: h2c", *["a: b"] * 11_000),
}


@pytest.mark.parametrize("name", TOO_LARGE)
@pytest.mark.parametrize("step", [1000, 50_000])
def test_headers_of_more_than_64_kib_are_answered_431_and_a_target_414(run: Any, name: str, step: int) -> None:
    sent = TOO_LARGE[name]

    async def play(connection: Connection) -> None:
        pieces = [sent[i : i + step] for i in range(0, len(sent), step)]
        await connection.send(*pieces)
        status, headers, error = connection.refusal()
        expected = (414, "uri_too_long") if "target" in name else (431, "headers_too_large")
        assert (status, error["code"]) == expected and headers["connection"] == "close"
        assert connection.transport.closed and not connection.requests

    run(play)


@pytest.mark.parametrize(
    ("path", "is_sentence"), [("/v2/models/embed/infer?x=/embed", True), ("/v1/embeddings", False), ("/embed", False)]
)
def test_the_path_decides_the_format_of_a_refusal(run: Any, path: str, is_sentence: bool) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Large: ".encode() + bytes(70_000))
        error = connection.refusal()[2]
        assert isinstance(error, str) == is_sentence
        assert is_sentence or ("type" in error) == path.startswith("/v1")

    run(play)


@pytest.mark.parametrize("step", [100, 70_000])
def test_headers_of_less_than_64_kib_are_taken_again_and_again(run: Any, step: int) -> None:
    async def play(connection: Connection) -> None:
        sent = request(f"X: {LONG}", body=b"image" * 40_000) * 3
        await connection.send(*[sent[i : i + step] for i in range(0, len(sent), step)])
        for _ in range(50):
            await asyncio.sleep(0)
        assert connection.answers == 3 and not connection.transport.closed

    run(play)


def test_headers_that_are_too_large_do_not_spoil_the_answer_before_them(run: Any) -> None:
    async def play(connection: Connection) -> None:
        connection.gate.clear()
        await connection.send(request(), *[b"GET / HTTP/1.1\r\nX: " + b"a" * 50_000] + [b"a" * 50_000] * 3)
        assert connection.transport.written == b""
        connection.gate.set()
        await connection.send(b"a")
        assert connection.answers == 1 and connection.transport.closed
        assert b"431" not in connection.transport.written

    run(play)


@pytest.mark.parametrize("trailer", [b"X: " + b"a" * 150_000, b"a: b\r\n" * 11_000])
def test_trailers_of_more_than_64_kib_are_answered_431(run: Any, trailer: bytes) -> None:
    async def play(connection: Connection) -> None:
        head = b"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nim\r\n0\r\n"
        await connection.send(head, *[trailer[i : i + 30_000] for i in range(0, len(trailer), 30_000)])
        assert connection.refusal()[0] == 431 and connection.transport.closed

    run(play)


def test_a_connection_that_says_nothing_is_closed(run: Any) -> None:
    async def play(connection: Connection) -> None:
        connection.loop.pass_time(HEADER_TIMEOUT_S - 1)
        assert not connection.transport.closed
        connection.loop.pass_time(1)
        assert connection.transport.closed and connection.transport.written == b""

    run(play)


@pytest.mark.parametrize("upgrade", [[], ["Connection: Upgrade", "Upgrade: h2c"]])
def test_half_headers_are_answered_408_however_they_trickle(run: Any, upgrade: list[str]) -> None:
    async def play(connection: Connection) -> None:
        head = request(*upgrade).partition(b"\r\n\r\n")[0]
        for i in range(9):
            await connection.send(head[i : i + 1])
            connection.loop.pass_time(1)
        assert not connection.transport.closed
        await connection.send(head[9:])
        connection.loop.pass_time(1)
        answer, _, body = connection.transport.written.partition(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n") and b"connection: close" in answer
        assert f"content-length: {len(body)}".encode() in answer
        assert json.loads(body)["error"]["code"] == "request_stalled"
        assert connection.transport.closed and not connection.requests

    run(play)


def test_half_headers_of_a_later_request_are_cut_off_too(run: Any) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(request())
        connection.loop.pass_time(60)
        await connection.send(b"POST /em")
        connection.loop.pass_time(HEADER_TIMEOUT_S - 1)
        await connection.send(b"bed HTTP/1.1\r\n")
        assert not connection.transport.closed
        connection.loop.pass_time(1)
        assert connection.transport.closed
        assert connection.answers == 1 and b"HTTP/1.1 408" in connection.transport.written

    run(play)


def test_half_headers_behind_a_request_do_not_spoil_its_answer(run: Any) -> None:
    async def play(connection: Connection) -> None:
        connection.gate.clear()
        await connection.send(request() + b"POST /em")
        connection.loop.pass_time(HEADER_TIMEOUT_S)
        assert connection.transport.written == b""
        connection.gate.set()
        await connection.send(b"")
        assert connection.answers == 1 and connection.transport.closed
        assert b"408" not in connection.transport.written

    run(play)


def test_a_body_that_somebody_reads_is_not_the_connections_concern(run: Any) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(request(body=b"x" * 100)[:-50])
        assert not connection.loop.armed
        connection.loop.pass_time(3600)
        await connection.send(b"x" * 50)
        assert connection.answers == 1

    run(play)


def test_a_body_that_nobody_reads_must_go_on(run: Any) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(request(path="/refuse", body=b"x" * 100)[:-100])
        assert connection.answers == 1
        for _ in range(5):
            connection.loop.pass_time(BODY_STALL_S - 1)
            await connection.send(b"x")
        assert not connection.transport.closed
        connection.loop.pass_time(BODY_STALL_S)
        assert connection.transport.closed

    run(play)


def test_after_a_body_that_nobody_reads_the_connection_goes_on(run: Any) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(request(path="/refuse", body=b"x" * 100)[:-100], b"x" * 50, b"x" * 50)
        connection.loop.pass_time(BODY_STALL_S)
        await connection.send(request())
        assert connection.answers == 2 and not connection.transport.closed

    run(play)


@pytest.mark.parametrize("path", ["/embed", "/refuse"])
def test_line_breaks_between_requests_do_not_keep_a_connection(run: Any, path: str) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(request(path=path), b"\r\n")
        connection.loop.pass_time(KEEP_ALIVE_S)
        assert connection.transport.closed

    run(play)


HOSTS = {"none": [], "two": ["Host: a", "Host: b"], "the same twice": ["Host: x", "Host: x"]}


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("more", [[], ["Connection: Upgrade", "Upgrade: h2c"]], ids=["", "upgrade"])
def test_a_request_without_exactly_one_host_is_refused(run: Any, hosts: list[str], more: list[str]) -> None:
    """RFC 9112, section 3.2."""

    async def play(connection: Connection) -> None:
        await connection.send("\r\n".join(["GET /embed HTTP/1.1", *hosts, *more, "", ""]).encode())
        status, _, error = connection.refusal()
        assert status == 400 and error["code"] == "malformed_request" and "Host" in error["message"]
        assert connection.transport.closed and not connection.requests

    run(play)


def test_http_1_0_needs_no_host(run: Any) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(b"GET /embed HTTP/1.0\r\n\r\n")
        assert connection.answers == 1

    run(play)


@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip,chunked", "identity, chunked"])
def test_a_transfer_coding_that_nobody_undoes_is_refused(run: Any, coding: str) -> None:
    """RFC 9112, section 6.1."""

    async def play(connection: Connection) -> None:
        head = f"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {coding}\r\n\r\n"
        await connection.send(head.encode() + b"3\r\nabc\r\n0\r\n\r\n")
        status, _, error = connection.refusal()
        assert status == 501 and error["code"] == "unsupported_transfer_coding"
        assert connection.transport.closed and not connection.requests

    run(play)


@pytest.mark.parametrize("coding", ["chunked", "Chunked", " chunked "])
def test_chunked_is_a_transfer_coding_and_a_trailer_says_nothing_of_it(run: Any, coding: str) -> None:
    async def play(connection: Connection) -> None:
        head = f"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {coding}\r\n\r\n"
        await connection.send(head.encode() + b"3\r\nabc\r\n0\r\nHost: y\r\n\r\n", request())
        assert [seen[2] for seen in connection.requests] == [b"abc", b"image"]

    run(play)


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize("requests", [1, 3])
def test_a_client_that_ends_its_side_behind_its_requests_gets_its_answers(run: Any, requests: int) -> None:
    async def play(connection: Connection) -> None:
        connection.gate.clear()
        await connection.send(request() * requests)
        assert connection.protocol.eof_received()
        assert connection.transport.written == (INTERIM if requests == 1 else b"")
        for _ in range(8):
            connection.loop.pass_time(1)
        connection.gate.set()
        for _ in range(50):
            await asyncio.sleep(0)
        assert connection.answers == requests and connection.transport.closed

    run(play)


@pytest.mark.parametrize(
    "sent",
    [b"", request(), request()[:-2], request()[:20], b"GET /slow HTTP/1.0\r\n\r\n", request() + b"POST /"],
    ids=range(6),
)
def test_a_client_that_ends_its_side_elsewhere_has_left(run: Any, sent: bytes) -> None:
    async def play(connection: Connection) -> None:
        if b"slow" in sent or sent.endswith(b"/"):
            connection.gate.clear()
        await connection.send(sent)
        assert not connection.protocol.eof_received()
        connection.transport.close()  # as the event loop does then
        connection.protocol.connection_lost(None)
        connection.gate.set()

    run(play)


def test_a_client_that_ends_its_side_and_reads_no_more_has_left(run: Any) -> None:
    async def play(connection: Connection) -> None:
        connection.gate.clear()
        await connection.send(request())
        assert connection.protocol.eof_received()
        connection.loop.pass_time(FIRST_CHECK_S)
        assert not connection.transport.closed
        connection.transport.socket.error = 104
        connection.loop.pass_time(2 * FIRST_CHECK_S)
        assert connection.transport.closed
        connection.gate.set()

    run(play)


def test_a_client_that_leaves_behind_several_requests_gets_no_answer_to_any(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The transport refuses to be written to by then, and uvicorn would log that as an error of the app."""

    async def play(connection: Connection) -> None:
        connection.gate.clear()
        await connection.send(request() * 4)
        connection.transport.close()
        connection.protocol.connection_lost(None)
        connection.gate.set()
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(connection.requests) == 1 and connection.transport.written == b""

    run(play)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_above_the_limit_a_connection_gets_one_request_and_little_time() -> None:
    async def main() -> None:
        limit = ConnectionLimit(2)
        connections = [Connection(limit) for _ in range(3)]
        await connections[1].send(request())
        await connections[2].send(request())
        assert [connection.transport.closed for connection in connections] == [False, False, True]
        assert connections[1].marked == [False] and connections[2].marked == [True]
        assert b"connection: close" in connections[2].transport.written
        connections[2].protocol.connection_lost(None)
        silent = Connection(limit)
        silent.loop.pass_time(RESERVE_TIMEOUT_S)
        connections[0].loop.pass_time(RESERVE_TIMEOUT_S)
        assert silent.transport.closed and not connections[0].transport.closed
        connections[0].protocol.connection_lost(None)
        silent.protocol.connection_lost(None)
        third = Connection(limit)
        await third.send(request() * 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert third.answers == 2 and third.marked == [False, False]

    asyncio.run(main())


def test_where_the_reserve_is_full_the_oldest_silent_connection_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        limit = ConnectionLimit(1)
        connections = [Connection(limit) for _ in range(1 + RESERVED_CONNECTIONS)]
        connections[1].gate.clear()
        await connections[1].send(request())  # it is being answered
        late = [Connection(limit) for _ in range(3)]
        closed = [number for number, connection in enumerate(connections) if connection.transport.closed]
        assert closed == [2, 3, 4]
        await late[-1].send(request())
        assert late[-1].answers == 1
        for connection in (*connections, *late):
            connection.protocol.connection_lost(None)
        connections[1].gate.set()
        Connection(limit)

    asyncio.run(main())
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "1 connections are open, as many as MAX_CONNECTIONS allows: only probes are answered"
    ]


def test_at_the_end_a_request_that_is_on_the_way_is_answered(run: Any) -> None:
    async def play(connection: Connection) -> None:
        connection.protocol.shutdown()
        assert not connection.transport.closed
        await connection.send(request())
        assert connection.answers == 1 and connection.transport.closed

    run(play)


def test_at_the_end_a_connection_without_a_request_is_soon_closed(run: Any) -> None:
    async def play(connection: Connection) -> None:
        connection.protocol.shutdown()
        connection.loop.pass_time(LAST_HEADERS_S)
        assert connection.transport.closed and connection.transport.written == b""

    run(play)


def test_at_the_end_an_idle_connection_is_closed(run: Any) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(request())
        connection.protocol.shutdown()
        assert connection.answers == 1 and connection.transport.closed

    run(play)
