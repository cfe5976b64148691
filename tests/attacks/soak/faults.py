"""The faults of clients: those that leave, stall, say nothing, say too much, or send files that cost much."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable

from tests.attacks.client import BOUNDARY, FORM, Connection, Lost, ask, describe, form
from tests.attacks.decodes import FLOODS, HEAVY, flat_png
from tests.attacks.soak.requests import JSON, KEY, RAW, Request, build, photographs
from tests.attacks.soak.traffic import Soak

MAX_CONNECTIONS = 800
STALL_S = 10.0
"""The defaults of HEADER_TIMEOUT_S and BODY_STALL_S."""
Fault = Callable[[Soak], Awaitable[None]]
HEAD = f"POST /embed HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Type: image/jpeg\r\n"


async def answer_of(soak: Soak, content: bytes, timeout_s: float = 60) -> str:
    """The status and code of an answer over a connection of its own, or the error of the connection."""
    try:
        answer = await ask(soak.port, content, timeout_s)
    except Lost as lost:
        return "lost with a killed worker" if lost.port in soak.killed_ports else f"no answer ({lost})"
    except OSError as error:
        return type(error).__name__
    if answer.status in (429, 503) and b"retry-after" in answer.headers and time.monotonic() < soak.overload_until:
        return "refused with Retry-After under overload"
    return describe(answer)


async def leave(soak: Soak) -> None:
    """Clients that leave in each phase, by a FIN and by an RST."""
    large = next(request for request in soak.requests if "pool=tokens&keep" in request.path).content
    middle = len(large) // 2
    for ends in (Connection.close, Connection.abort):
        for name, sent, waits_s, reads in (
            ("in the headers", large[:60], 0.2, 0),
            ("in the body", large[:middle], 0.2, 0),
            ("behind the request", large, 0.0, 0),
            ("while it waits", large, 0.02, 0),
            ("behind four requests", large * 4, 0.0, 0),
            ("in the answer", large, 0.0, 1000),
        ):
            for _ in range(3):
                try:
                    connection = await Connection.open(soak.port)
                    await connection.send(sent)
                    if reads:
                        await asyncio.wait_for(connection.reader.read(reads), 60)
                except OSError as error:
                    soak.note(f"left {name}: {type(error).__name__}")
                    continue
                await asyncio.sleep(waits_s)
                ends(connection)
                soak.note(f"left {name}")
                await asyncio.sleep(0.3)


async def stall_uploads(soak: Soak) -> None:
    """Ten bodies that declare 30 MB and stop after some bytes."""
    sent = f"{HEAD}Content-Length: 30000000\r\n\r\n".encode() + bytes(5000)
    answers = await asyncio.gather(*(answer_of(soak, sent) for _ in range(10)))
    for answer in answers:
        soak.note(f"stalled body: {answer}")


async def send_half_headers(soak: Soak) -> None:
    """Ten requests whose headers do not end."""
    answers = await asyncio.gather(*(answer_of(soak, HEAD.encode()) for _ in range(10)))
    for answer in answers:
        soak.note(f"half headers: {answer}")


async def upload_slowly(soak: Soak) -> None:
    """A body in 20 pieces, one each 0.3 s; and an answer that is read slowly."""
    request = soak.requests[0]
    connection = await Connection.open(soak.port)
    size = len(request.content) // 20 + 1
    for start in range(0, len(request.content), size):
        await connection.send(request.content[start : start + size])
        await asyncio.sleep(0.3)
    await judge(soak, connection, request)
    connection.close()


async def judge(soak: Soak, connection: Connection, request: Request) -> None:
    """Reads an answer and counts whether it is right."""
    try:
        soak.judge(request, await connection.read())
    except Lost as lost:
        soak.judge_loss(request, lost)


async def pipeline(soak: Soak) -> None:
    """Five requests behind each other; the answers come in their order."""
    connection = await Connection.open(soak.port)
    chosen = soak.random.sample(soak.requests, 5)
    await connection.send(b"".join(request.content for request in chosen))
    for request in chosen:
        await judge(soak, connection, request)
    connection.close()


async def half_close(soak: Soak) -> None:
    """Clients that end their side behind the request."""
    for request in soak.random.sample(soak.requests, 4):
        connection = await Connection.open(soak.port)
        await connection.send(request.content)
        connection.writer.write_eof()
        await judge(soak, connection, request)
        connection.close()


async def send_wrong_keys(soak: Soak) -> None:
    """No key, a wrong one, and one in the query."""
    image = photographs()[0]
    for name, path, header in (
        ("no key", "/embed", ""),
        ("wrong key", "/embed", "X-API-Key: soak-kez\r\n"),
        ("wrong key", "/embed", "Authorization: Bearer soak\r\n"),
        ("key in the query", f"/embed?api_key={KEY}", ""),
    ):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{header}Content-Length: {len(image)}\r\n\r\n"
        soak.note(f"{name}: {await answer_of(soak, head.encode() + image)}")


async def send_too_much(soak: Soak) -> None:
    """Headers, targets, bodies and forms above the limits, and requests that the RFCs forbid."""
    image = photographs()[4]
    for name, content in (
        ("long header", f"{HEAD}X: {'a' * 70_000}\r\n\r\n".encode()),
        ("many headers", (HEAD + "X: a\r\n" * 12_000 + "\r\n").encode()),
        ("long target", f"GET /{'a' * 70_000} HTTP/1.1\r\nHost: x\r\n\r\n".encode()),
        ("declared body", f"{HEAD}Content-Length: 40000000\r\n\r\n".encode()),
        ("65 images", build("/embed", form([image] * 65), FORM).content),
        ("no Host", b"GET /livez HTTP/1.1\r\n\r\n"),
        ("transfer coding", f"{HEAD}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".encode()),
        ("Content-Encoding", build("/embed", image, RAW, "Content-Encoding: gzip").content),
        ("Upgrade", build("/embed", image, RAW, "Connection: Upgrade", "Upgrade: websocket").content),
        ("malformed form", build("/embed", b"--x", f"multipart/form-data; boundary={BOUNDARY}").content),
    ):
        soak.note(f"{name}: {await answer_of(soak, content)}")


class HostileFiles:
    """Files that cost much to decode, a few each time; and photographs that are cut off."""

    CHOSEN = ("500,000 texts", "4000 scans", "10 MB of EXIF prefixes", "20 MB of fill bytes")

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._turn = 0
        makers = {**HEAVY, **{name: FLOODS[name] for name in self.CHOSEN}}
        self._makers = list(makers.items())

    async def send(self, soak: Soak) -> None:
        """Three of the costly files at once, the next ones each time."""
        names = []
        for _ in range(3):
            name, make = self._makers[self._turn % len(self._makers)]
            self._turn += 1
            if name not in self._files:
                self._files[name] = build("/embed", make()).content
            names.append(name)
        answers = await asyncio.gather(*(answer_of(soak, self._files[name], 90) for name in names))
        for answer in answers:
            soak.note(f"costly file: {answer}")

    def prepare(self) -> None:
        """Makes all files, before there is load."""
        self._files = {name: build("/embed", make()).content for name, make in self._makers}


async def send_truncated(soak: Soak) -> None:
    """Photographs of every format, cut off in the middle."""
    for file in photographs()[:12]:
        content = build("/embed", file[: len(file) // 2]).content
        soak.note(f"cut file: {await answer_of(soak, content)}")


async def open_idle(soak: Soak) -> None:
    """More silent connections than MAX_CONNECTIONS: probes are answered meanwhile, and the silent ones are closed."""
    soak.expect_overload()
    silent: list[Connection] = []
    for number in range(MAX_CONNECTIONS + 100):
        if number % 10 == 0:
            await asyncio.sleep(0.02)  # so that the server takes them a few at a time
        try:
            silent.append(await Connection.open(soak.port))
        except OSError as error:
            soak.note(f"silent connection: {type(error).__name__}")
    for path in ("/livez", "/readyz", "/metrics"):
        soak.note(f"probe above the limit: {await answer_of(soak, build(path).content, 10)}")
    await soak.send(soak.requests[0])
    end = time.monotonic() + STALL_S + 5
    while time.monotonic() < end and not all(one.reader.at_eof() or one.reader.exception() for one in silent):
        await asyncio.sleep(0.5)
    for one in silent:
        ended = one.reader.at_eof() or one.reader.exception()
        soak.note("silent connection: closed by the server" if ended else "silent connection: still open")
        one.abort()
    soak.expect_overload()


async def use_all_threads(soak: Soak) -> None:
    """Images that take long and large JSON bodies, over many connections: a new worker has all its threads then."""
    photograph = base64.b64encode(photographs()[-1]).decode()
    for request in (
        build("/embed", flat_png(3000, 3000, 0, 8)),
        build("/embed?keep=0.1&seed=1", json.dumps({"images": [photograph] * 6}).encode(), JSON),
    ):
        connections = [await Connection.open(soak.port) for _ in range(32)]
        for answer in await asyncio.gather(*(one.exchange(request.content) for one in connections)):
            soak.note(f"long file: {describe(answer)}")
        for one in connections:
            one.close()


async def end_idle_threads(soak: Soak) -> None:
    """One request after the other to a route that runs in a thread: each worker ends those that have long been idle."""
    connections = [await Connection.open(soak.port) for _ in range(4)]
    for one in connections:
        await one.exchange(build("/metrics").content)
    for one in connections:
        one.close()
