"""The connection between a worker and the engine process: messages over a Unix socket.

Pixels and results lie in shared memory, and messages only point at them. All messages that are sent in one turn of the
event loop go out in one write.
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from typing import Any, cast

import orjson

from service.workers.messages import HEAD, KIND_OF, Kind


class Channel(asyncio.Protocol, ABC):
    """One end of the socket."""

    def __init__(self) -> None:
        """Not connected yet."""
        self.disconnected = asyncio.Event()
        """Set when the connection has ended, whichever side has closed it."""
        self.closed = False
        """Whether this side has closed the connection."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[bytes] = []
        self._incoming = bytearray()

    async def connect(self, end: socket.socket) -> None:
        """Sends and receives over `end` from now on, and takes ownership of it."""
        end.setblocking(False)
        try:
            await self._loop.create_unix_connection(lambda: self, sock=end)
        except BaseException:
            end.close()
            raise

    def send(self, kind: Kind, content: bytes = b"") -> None:
        """Sends a message at the end of this turn of the event loop. It is dropped silently if the peer has closed."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(HEAD.pack(len(content), kind))
        self._outgoing.append(content)

    @abstractmethod
    def message_received(self, kind: Kind, content: memoryview) -> None:
        """Handles a message; `content` is valid only during the call."""

    def close(self) -> None:
        """Closes the connection."""
        self.closed = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the messages that were sent before there was a connection."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport is not a subclass
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        """Records that the connection has ended."""
        self._transport = None
        self.disconnected.set()

    def data_received(self, data: bytes) -> None:
        """Cuts the stream into messages."""
        self._incoming += data
        start, end = 0, len(self._incoming)
        with memoryview(self._incoming) as view:
            while end - start >= HEAD.size:
                length, kind = HEAD.unpack_from(view, start)
                if end - start - HEAD.size < length:
                    break
                start += HEAD.size + length
                with view[start - length : start] as content:
                    self.message_received(KIND_OF[kind], content)
        del self._incoming[:start]

    def _flush(self) -> None:
        if self._transport is None and not self.disconnected.is_set():
            return  # not connected yet
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(outgoing))


def receive_first(end: socket.socket) -> Any:
    """Waits for the message SETTINGS, before there is an event loop.

    Raises:
        EOFError: the engine process has closed its end.
    """
    length, _ = HEAD.unpack(_receive_exactly(end, HEAD.size))
    return orjson.loads(_receive_exactly(end, length))


def _receive_exactly(end: socket.socket, size: int) -> bytes:
    data = end.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise EOFError("the engine process has closed its end")
    return data
