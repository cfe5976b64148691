"""A small client of HTTP/1.1 over asyncio's streams, which costs little CPU time and can stop at any byte."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

TIMEOUT_S = 60.0
HOST = "127.0.0.1"
BOUNDARY = "attack-boundary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


class Lost(Exception):
    """The connection ended before the answer did; `port` is the client's port."""

    def __init__(self, port: int, reason: str) -> None:
        super().__init__(reason)
        self.port = port


@dataclass(frozen=True)
class Answer:
    """An answer; the names of its headers are in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Connection:
    """One connection, over which requests go one after the other or pipelined."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.port: int = writer.get_extra_info("sockname")[1]
        self.is_open = True

    @classmethod
    async def open(cls, port: int, timeout_s: float = TIMEOUT_S) -> Connection:
        """Connects to the server.

        Raises:
            OSError: it does not take the connection; TimeoutError where it lets it wait.
        """
        async with asyncio.timeout(timeout_s):
            return cls(*await asyncio.open_connection(HOST, port, limit=1 << 20))

    async def exchange(self, request: bytes, timeout_s: float = TIMEOUT_S) -> Answer:
        """Sends a request and reads its answer.

        Raises:
            Lost: there is no whole answer.
        """
        await self.send(request)
        return await self.read(timeout_s)

    async def send(self, content: bytes) -> None:
        """Sends bytes; a connection that the server has closed is noticed when the answer is read."""
        self.writer.write(content)
        try:
            await asyncio.wait_for(self.writer.drain(), TIMEOUT_S)
        except (OSError, TimeoutError):
            return

    async def read(self, timeout_s: float = TIMEOUT_S) -> Answer:
        """Reads one answer, past interim ones.

        Raises:
            Lost: the connection ends before the answer does, it takes longer than `timeout_s`, or it is no HTTP.
        """
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._read()
                while answer.status == 100:
                    answer = await self._read()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError) as error:
            self.abort()
            raise Lost(self.port, type(error).__name__) from error
        if answer.headers.get(b"connection") == b"close":
            self.close()
        return answer

    async def _read(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        status = int(head[0].split(b" ")[1])
        pairs = (line.split(b": ", 1) for line in head[1:-2])
        headers = {name.lower(): value for name, value in pairs}
        if headers.get(b"transfer-encoding") == b"chunked":
            body = await self._read_chunks()
        else:
            body = await self.reader.readexactly(int(headers.get(b"content-length", b"0")))
        return Answer(status, headers, body)

    async def _read_chunks(self) -> bytes:
        chunks = []
        while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
            chunks.append(await self.reader.readexactly(size))
            await self.reader.readexactly(2)
        await self.reader.readuntil(b"\r\n")
        return b"".join(chunks)

    def close(self) -> None:
        """Ends the connection by a FIN."""
        self.is_open = False
        self.writer.close()

    def abort(self) -> None:
        """Ends the connection by an RST."""
        self.is_open = False
        one: socket.socket = self.writer.get_extra_info("socket")
        if one is not None and one.fileno() >= 0:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def ask(port: int, request: bytes, timeout_s: float = TIMEOUT_S) -> Answer:
    """The answer to one request over a connection of its own.

    Raises:
        Lost: there is no whole answer.
        OSError: the server does not take the connection.
    """
    connection = await Connection.open(port, timeout_s)
    try:
        return await connection.exchange(request, timeout_s)
    finally:
        connection.close()


def describe(answer: Answer) -> str:
    """The status, with the code of an error in JSON."""
    code = answer.body.partition(b'"code":"')[2].partition(b'"')[0].decode("latin-1")
    return f"{answer.status} {code}".strip()


def form(images: Sequence[bytes], mask: bytes | None = None) -> bytes:
    """The body of type `FORM` with images, and with a mask if there is one."""
    parts = [("image", image) for image in images] + ([("mask", mask)] if mask else [])
    head = '--{}\r\nContent-Disposition: form-data; name="{}"; filename="x"\r\n\r\n'
    content = b"".join(head.format(BOUNDARY, name).encode() + data + b"\r\n" for name, data in parts)
    return content + f"--{BOUNDARY}--\r\n".encode()
