"""The process that serves: uvicorn, but the app owns the signals.

Stock uvicorn closes its listener on SIGTERM and exits with 143. Here the listener stays open while accepted requests
are finished; new ones are told 503; the exit code is 0, or 1 when the engine was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.service import Service

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server(uvicorn.Server):
    """Serves one app until a signal has been drained, or its engine is lost."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        """`port` 0 takes a free one, which the log names."""
        # Its own log says where it listens; requests are logged by the app.
        config = uvicorn.Config(app, host, port, log_config=None, access_log=False, timeout_keep_alive=65)
        config.timeout_graceful_shutdown = 1  # the drain is over by then: whatever is left is cut off
        super().__init__(config)
        self._service: Service = app.state.service
        self._service.on_exit = self._exit

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes the signals for as long as the server runs, and does not raise them again afterwards."""
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: FrameType | None) -> None:
            second = self._service.state == "draining"
            loop.call_soon_threadsafe(self._exit if second and number == signal.SIGINT else self._service.terminate)

        previous = {number: signal.signal(number, handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _exit(self) -> None:
        self.should_exit = True


def serve(app: FastAPI, host: str, port: int) -> int:
    """Serves until the end; returns the exit code."""
    gc.freeze()  # what was imported stays: the collector need not go through it again and again, on the event loop
    Server(app, host, port).run()
    service: Service = app.state.service
    if service.exit_code or any(thread.daemon for thread in threading.enumerate()):
        # A build or a batch that does not end is deep inside a library: unwinding the interpreter beneath can crash.
        # So can whatever gives memory back to a device that is lost.
        logging.shutdown()
        os._exit(service.exit_code)
    return service.exit_code
