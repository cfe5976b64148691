"""Requests as the protocol class reads them: upgrades, sizes, malformed bodies, hosts and transfer codings."""

import asyncio
from typing import Any

import pytest

from tests.support.connections import Connection, request

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
def test_an_upgrade_is_ignored_and_the_body_is_whole(connect: Any, headers: tuple[str, ...], step: int) -> None:
    async def play(connection: Connection) -> None:
        sent = request(*headers, "X-Name: caf\xe9") * 2 + request()
        await connection.send(*([sent[i : i + step] for i in range(0, len(sent), step)] if step else [sent]))
        for _ in range(50):
            await asyncio.sleep(0)
        assert [seen[:3] for seen in connection.requests] == [("POST", "/embed", b"image")] * 3
        assert connection.requests[0][3]["x-name"] == "caf\xe9"
        assert connection.answers == 3 and not connection.transport.closed

    connect(play)


def test_an_upgrade_with_a_chunked_body(connect: Any) -> None:
    async def play(connection: Connection) -> None:
        upgrade = "Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        head = "POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + upgrade
        await connection.send(head.encode() + b"2\r\nim\r\n3\r\nage\r\n", b"0\r\n\r\n")
        assert [seen[:3] for seen in connection.requests] == [("POST", "/embed", b"image")]

    connect(play)


def test_a_connection_that_also_asks_to_be_closed_is_closed(connect: Any) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(request("Connection: close, Upgrade", "Upgrade: h2c"))
        assert connection.answers == 1 and connection.transport.closed

    connect(play)


@pytest.mark.parametrize("sent", [b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n", b"nonsense\r\n\r\n"])
def test_what_is_no_request_for_a_resource_is_refused(connect: Any, sent: bytes) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(sent)
        status, headers, error = connection.refusal()
        assert status == 400 and error["code"] == "malformed_request" and connection.transport.closed
        assert len(headers["x-request-id"]) == 32

    connect(play)


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
def test_headers_of_more_than_64_kib_are_answered_431_and_a_target_414(connect: Any, name: str, step: int) -> None:
    sent = TOO_LARGE[name]

    async def play(connection: Connection) -> None:
        pieces = [sent[i : i + step] for i in range(0, len(sent), step)]
        await connection.send(*pieces)
        status, headers, error = connection.refusal()
        expected = (414, "uri_too_long") if "target" in name else (431, "headers_too_large")
        assert (status, error["code"]) == expected and headers["connection"] == "close"
        assert connection.transport.closed and not connection.requests

    connect(play)


@pytest.mark.parametrize(
    ("path", "is_sentence"), [("/v2/models/embed/infer?x=/embed", True), ("/v1/embeddings", False), ("/embed", False)]
)
def test_the_path_decides_the_format_of_a_refusal(connect: Any, path: str, is_sentence: bool) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Large: ".encode() + bytes(70_000))
        error = connection.refusal()[2]
        assert isinstance(error, str) == is_sentence
        assert is_sentence or ("type" in error) == path.startswith("/v1")

    connect(play)


@pytest.mark.parametrize("step", [100, 70_000])
def test_headers_of_less_than_64_kib_are_taken_again_and_again(connect: Any, step: int) -> None:
    async def play(connection: Connection) -> None:
        sent = request(f"X: {LONG}", body=b"image" * 40_000) * 3
        await connection.send(*[sent[i : i + step] for i in range(0, len(sent), step)])
        for _ in range(50):
            await asyncio.sleep(0)
        assert connection.answers == 3 and not connection.transport.closed

    connect(play)


CHUNKED = b"POST /%s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("path", [b"embed", b"refuse"])
def test_a_malformed_body_is_answered_once(connect: Any, path: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The app, whether it reads the body or not, answers too late."""

    async def play(connection: Connection) -> None:
        connection.gate.clear()
        await connection.send(CHUNKED % path, b"no size\r\n")
        assert connection.refusal()[0] == 400 and connection.transport.closed
        connection.gate.set()
        await connection.send(b"a")
        assert not connection.answers and "Exception in ASGI application" not in caplog.text

    connect(play)


@pytest.mark.parametrize("others", [0, 2])
def test_a_malformed_body_does_not_spoil_the_answers_before_it(connect: Any, others: int) -> None:
    async def play(connection: Connection) -> None:
        connection.gate.clear()
        await connection.send(request(), *[request()] * others, CHUNKED % b"embed" + b"no size\r\n")
        assert connection.transport.written == b""
        connection.gate.set()
        for _ in range(50):
            await asyncio.sleep(0)
        assert connection.answers == 1 + others and connection.transport.closed
        assert b" 400 " not in connection.transport.written

    connect(play)


def test_headers_that_are_too_large_do_not_spoil_the_answer_before_them(connect: Any) -> None:
    async def play(connection: Connection) -> None:
        connection.gate.clear()
        await connection.send(request(), *[b"GET / HTTP/1.1\r\nX: " + b"a" * 50_000] + [b"a" * 50_000] * 3)
        assert connection.transport.written == b""
        connection.gate.set()
        await connection.send(b"a")
        assert connection.answers == 1 and connection.transport.closed
        assert b"431" not in connection.transport.written

    connect(play)


@pytest.mark.parametrize("trailer", [b"X: " + b"a" * 150_000, b"a: b\r\n" * 11_000])
def test_trailers_of_more_than_64_kib_are_answered_431(connect: Any, trailer: bytes) -> None:
    async def play(connection: Connection) -> None:
        head = b"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nim\r\n0\r\n"
        await connection.send(head, *[trailer[i : i + 30_000] for i in range(0, len(trailer), 30_000)])
        assert connection.refusal()[0] == 431 and connection.transport.closed

    connect(play)


HOSTS = {"none": [], "two": ["Host: a", "Host: b"], "the same twice": ["Host: x", "Host: x"]}


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("more", [[], ["Connection: Upgrade", "Upgrade: h2c"]], ids=["", "upgrade"])
def test_a_request_without_exactly_one_host_is_refused(connect: Any, hosts: list[str], more: list[str]) -> None:
    """RFC 9112, section 3.2."""

    async def play(connection: Connection) -> None:
        await connection.send("\r\n".join(["GET /embed HTTP/1.1", *hosts, *more, "", ""]).encode())
        status, _, error = connection.refusal()
        assert status == 400 and error["code"] == "malformed_request" and "Host" in error["message"]
        assert connection.transport.closed and not connection.requests

    connect(play)


def test_http_1_0_needs_no_host(connect: Any) -> None:
    async def play(connection: Connection) -> None:
        await connection.send(b"GET /embed HTTP/1.0\r\n\r\n")
        assert connection.answers == 1

    connect(play)


@pytest.mark.parametrize("coding", ["gzip, chunked", "gzip,chunked", "identity, chunked"])
def test_a_transfer_coding_that_nobody_undoes_is_refused(connect: Any, coding: str) -> None:
    """RFC 9112, section 6.1."""

    async def play(connection: Connection) -> None:
        head = f"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {coding}\r\n\r\n"
        await connection.send(head.encode() + b"3\r\nabc\r\n0\r\n\r\n")
        status, _, error = connection.refusal()
        assert status == 501 and error["code"] == "unsupported_transfer_coding"
        assert connection.transport.closed and not connection.requests

    connect(play)


@pytest.mark.parametrize("coding", ["chunked", "Chunked", " chunked "])
def test_chunked_is_a_transfer_coding_and_a_trailer_says_nothing_of_it(connect: Any, coding: str) -> None:
    async def play(connection: Connection) -> None:
        head = f"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {coding}\r\n\r\n"
        await connection.send(head.encode() + b"3\r\nabc\r\n0\r\nHost: y\r\n\r\n", request())
        assert [seen[2] for seen in connection.requests] == [b"abc", b"image"]

    connect(play)
