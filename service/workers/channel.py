"""Messages between a worker and the device process, over a Unix socket: what every image needs is a small struct.

Pixels and results lie in shared memory and are only pointed at. What is rare (settings, state, metrics, an error) is
JSON; nothing is ever pickled. Whatever is sent in one turn of the event loop goes out in one write.
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from enum import IntEnum
from struct import Struct
from typing import Any, cast

import orjson

from service.errors import ServiceError
from service.inference.queue import Operation

HEAD = Struct("<IB3x")
"""Bytes that follow, kind."""
PUT = Struct("<IIIIIId")
"""Request, slot, index, images, visible patches, operation, deadline."""
DONE = Struct("<Idd")
"""Slot, seconds in the queue, seconds in a batch."""
NUMBER = Struct("<I")
"""A slot or a request."""
OPERATIONS: tuple[Operation, ...] = ("embed", "tokens", "reconstruct")
KINDS: list[type[ServiceError]] = [ServiceError, *ServiceError.__subclasses__()]
ERRORS = {kind.__name__: kind for kind in KINDS}


class Kind(IntEnum):
    """What a message says."""

    SETTINGS = 1
    """To a worker, the first: JSON."""
    HELLO = 2
    """From a worker: it takes connections."""
    OPEN = 3
    """To a worker: the engine is there. NUMBER bytes of JSON, then the model's extras."""
    STATE = 4
    """To a worker: JSON of the service's state."""
    PUT = 5
    """From a worker: an image waits in a slot."""
    DONE = 6
    """To a worker: the image's result is in the slot, which is the worker's again."""
    RELEASED = 7
    """To a worker: a slot is its own again, and there is no result."""
    FAILED = 8
    """To a worker: NUMBER of a request that has failed, JSON of the error."""
    CANCEL = 9
    """From a worker: NUMBER of a request that nobody waits for."""
    PULL = 10
    """To a worker: NUMBER of a question for its counters."""
    COUNTERS = 11
    """From a worker: NUMBER of the question, 0 if there was none; its counters, JSON."""
    SCRAPE = 12
    """From a worker: NUMBER of a scrape that wants the metrics of the whole service."""
    EXPOSITION = 13
    """To a worker: NUMBER of the scrape, the metrics."""
    EXIT = 14
    """To a worker: answer what there is and end."""


KIND_OF = {int(kind): kind for kind in Kind}
"""By number: a lookup costs less than making a Kind of it, for every image."""


def packed_error(error: ServiceError) -> bytes:
    """An error on its way."""
    return orjson.dumps([type(error).__name__, error.message, error.details])


def unpacked_error(data: bytes | memoryview) -> ServiceError:
    """The same error, class and all, on the other side."""
    kind, message, details = orjson.loads(data)
    return ERRORS[kind](message, **details)


class Channel(asyncio.Protocol, ABC):
    """One end of the socket."""

    def __init__(self) -> None:
        """Not connected yet."""
        self.gone = asyncio.Event()
        """Set when the connection has ended, whoever has ended it."""
        self.hung_up = False
        """Whether it was this side."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[bytes] = []
        self._incoming = bytearray()

    async def connect(self, end: socket.socket) -> None:
        """Speaks over `end` from now on, and closes it in the end."""
        end.setblocking(False)
        try:
            await self._loop.create_unix_connection(lambda: self, sock=end)
        except BaseException:
            end.close()
            raise

    def send(self, kind: Kind, content: bytes = b"") -> None:
        """Sends a message at the end of this turn of the event loop; into the void if the other side is gone."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(HEAD.pack(len(content), kind))
        self._outgoing.append(content)

    @abstractmethod
    def received(self, kind: Kind, content: memoryview) -> None:
        """Takes a message in; `content` is valid for the time of the call."""

    def close(self) -> None:
        """Hangs up."""
        self.hung_up = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        self._flush()  # what was said before

    def connection_lost(self, error: Exception | None) -> None:
        """The other side is gone."""
        self._transport = None
        self.gone.set()

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
                    self.received(KIND_OF[kind], content)
        del self._incoming[:start]

    def _flush(self) -> None:
        if self._transport is None and not self.gone.is_set():
            return  # not connected yet
        outgoing, self._outgoing = self._outgoing, []
        if outgoing and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(outgoing))


def receive_first(end: socket.socket) -> Any:
    """Waits for the message SETTINGS, before there is an event loop.

    Raises:
        EOFError: the other side has gone.
    """
    length, _ = HEAD.unpack(_exactly(end, HEAD.size))
    return orjson.loads(_exactly(end, length))


def _exactly(end: socket.socket, size: int) -> bytes:
    data = end.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise EOFError("the device process has gone")
    return data
