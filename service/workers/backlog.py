"""The connections that no worker has accepted, at the end of the service: closing the listener would reset them.

Workers that are told to end accept what waits. Workers that were killed do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

from service.errors import ServiceError
from service.http_protocol import LAST_HEADERS_S, MAX_HEADER_BYTES, refusal

log = logging.getLogger(__name__)
HEADERS_END = b"\r\n\r\n"
DISCARD_S = 0.3
"""Time for the rest of a body. What is unread when a connection is closed makes the kernel reset it, and the client may
lose the answer."""
REFUSE_S = 5.0
"""The longest time for all connections together, also where new ones still come."""


async def refuse_waiting(listener: socket.socket, error: ServiceError) -> int:
    """Accepts the connections that wait in the queue of `listener`, answers their requests with `error`, closes them.

    A connection on which no request arrives within `LAST_HEADERS_S` is closed without an answer.

    Returns:
        The number of connections.
    """
    count = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REFUSE_S):
            while connections := _accept_waiting(listener):
                count += len(connections)
                await asyncio.gather(*(_refuse(connection, error) for connection in connections))
    return count


def _accept_waiting(listener: socket.socket) -> list[socket.socket]:
    """The connections of the queue, or as many of them as this process may have open files."""
    connections: list[socket.socket] = []
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return connections  # the queue is empty
        except ConnectionAbortedError:
            continue  # this client has left
        except OSError as error:
            if not connections:
                log.error("connections that no worker has accepted are lost: %s", error)
            return connections
        connection.setblocking(False)
        connections.append(connection)


async def _refuse(connection: socket.socket, error: ServiceError) -> None:
    loop = asyncio.get_running_loop()
    with connection, contextlib.suppress(OSError):  # the client has left, or has not closed its side in time
        request = await _receive_headers(connection)
        if not request:
            return
        target = request.partition(b" ")[2].partition(b" ")[0]
        await loop.sock_sendall(connection, refusal(error, target))
        connection.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(DISCARD_S):
            while await loop.sock_recv(connection, 1 << 16):
                pass


async def _receive_headers(connection: socket.socket) -> bytes:
    """The first bytes of a connection, up to the end of a request's headers if that comes in time."""
    loop, received = asyncio.get_running_loop(), b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LAST_HEADERS_S):
            while HEADERS_END not in received and len(received) <= MAX_HEADER_BYTES:
                piece = await loop.sock_recv(connection, 1 << 16)
                if not piece:
                    break
                received += piece
    return received
