"""uvicorn, with signals that begin a drain.

Stock uvicorn closes its listener on SIGTERM and exits with 143, and SIGHUP kills it. Here the listener stays open while
accepted requests are finished, new requests are answered 503, and the exit code is 0, or 1 when the engine was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn

from service.connection_limit import ConnectionLimit, connections_per_process
from service.http_protocol import HttpProtocol
from service.listener import listen, stop_handshakes
from service.service import LocalService, Service

if TYPE_CHECKING:
    from fastapi import FastAPI

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ACCEPT_S = 0.05
"""Time in which the connections that wait in the listener's queue are accepted before it is closed."""


class Server(uvicorn.Server):
    """Serves one app until its service says that the process should end."""

    def __init__(self, app: FastAPI) -> None:
        """Listens nowhere yet.

        Raises:
            InvalidSettings: MAX_CONNECTIONS needs more open files than the process may have.
        """
        service: Service = app.state.service
        settings = service.settings
        limit = ConnectionLimit(connections_per_process(settings))
        protocol: Any = functools.partial(HttpProtocol, limit, settings.header_timeout_s, settings.body_stall_s)
        # The app logs requests, and uvicorn logs its own start and end, both by the handlers of service.logs.
        config = uvicorn.Config(app, http=protocol, ws="none", log_config=None, access_log=False, timeout_keep_alive=65)
        config.timeout_graceful_shutdown = 1  # the drain is over by then: the requests that are left are cut off
        super().__init__(config)
        service.subscribe(lambda: self._exit_with(service))

    def _exit_with(self, service: Service) -> None:
        if service.exit_code is not None:
            self.should_exit = True


class LocalServer(Server):
    """Serves the app of a `LocalService`, and hands signals to it."""

    def __init__(self, app: FastAPI) -> None:
        """See `Server`."""
        super().__init__(app)
        service = app.state.service
        assert isinstance(service, LocalService)
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles the signals as long as the server runs, and does not raise them again afterwards."""
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._service.handle_signal, number)

        previous = {number: signal.signal(number, handle) for number in drain_signals()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts the connections that clients have already made, answers them, and ends."""
        for listener in sockets or []:
            stop_handshakes(listener)
        await asyncio.sleep(ACCEPT_S)
        await super().shutdown(sockets)


def drain_signals() -> tuple[signal.Signals, ...]:
    """The signals that begin a drain: under `nohup`, SIGHUP is ignored and stays so."""
    return tuple(number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN)


def serve(app: FastAPI, host: str, port: int) -> int:
    """Serves the app of a `LocalService` until the end; returns the exit code.

    Raises:
        InvalidSettings: nobody can listen on `host` and `port`, or MAX_CONNECTIONS needs too many open files.
    """
    server = LocalServer(app)
    sockets = listen(host, port)
    gc.freeze()  # imported objects stay, so the collector need not visit them on the event loop
    server.run(sockets)
    service: Service = app.state.service
    return leave(service.exit_code or 0)


def leave(code: int) -> int:
    """Returns the exit code where no other thread runs, else ends the process with it at once.

    The interpreter would wait for a thread that decodes an image, for as long as that takes. A build or a batch that
    does not end is deep inside a library: unwinding the interpreter beneath it can crash. A library can also crash when
    it gives memory back to a lost device.
    """
    if code or len(threading.enumerate()) > 1:
        exit_now(code)
    return code


def exit_now(code: int) -> NoReturn:
    """Ends the process without unwinding the interpreter."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
            stream.flush()
    os._exit(code)
