"""How a worker accepts connections: all share one listening socket, and a busy worker yields to a less busy one.

The connections wait in one queue for all workers, so none waits for a worker that is busy, dead or not started yet. But
the kernel gives a burst of connections to the process that wakes first, and clients keep their connections open. So
each worker accepts one connection at a time, and a worker that has more open than another one waits first, so that the
other one can accept it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import NoReturn

from fastapi import FastAPI

from service.server import SIGNALS, Server, exit_now
from service.workers.shared_counters import Column, SharedCounters
from service.workers.worker import WorkerService

log = logging.getLogger(__name__)
# How long a worker waits for a less busy one to accept a connection.
YIELD_S = 0.002
# The pause after accept() has failed (too many open files): other connections may close meanwhile.
RETRY_S = 1.0


class FairAcceptor(Server):
    """Serves a worker's app until the engine process tells the worker to end."""

    def __init__(self, app: FastAPI, listener: socket.socket, counters: SharedCounters, worker_index: int) -> None:
        """Accepts connections from `listener`."""
        super().__init__(app)
        service = app.state.service
        assert isinstance(service, WorkerService)
        self._service = service
        self._listener = listener
        self._counters = counters
        self._worker_index = worker_index
        self._opening: set[asyncio.Task[object]] = set()
        """The connections that are accepted and not yet known to uvicorn."""
        self._has_failed = False
        """Whether the last connection could not be accepted; the log says it once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ignores signals: a terminal sends them to all processes, and the engine process tells the workers to end."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections."""
        await super().startup(sockets=[])
        self._loop = asyncio.get_running_loop()
        await self._service.state_known.wait()  # or a worker in place of a dead one would answer that it starts
        self._counters.set(self._worker_index, Column.ACCEPTING, 1)
        self._watch_listener()
        self._service.announce_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts no more connections and ends."""
        self._loop.remove_reader(self._listener)
        self._counters.set(self._worker_index, Column.ACCEPTING, 0)
        while self._accept():  # what clients have already connected
            pass
        if self._opening:
            await asyncio.wait(self._opening)
        await super().shutdown(sockets=[])

    def _watch_listener(self) -> None:
        if not self.should_exit:
            self._loop.add_reader(self._listener, self._on_connection_ready)

    def _on_connection_ready(self) -> None:
        """Accepts a connection at once, or later if another worker has fewer open."""
        counters, own = self._counters, len(self.server_state.connections) + len(self._opening)
        counters.set(self._worker_index, Column.CONNECTIONS, own)
        others = [
            counters.get(worker_index, Column.CONNECTIONS)
            for worker_index in range(counters.workers)
            if worker_index != self._worker_index and counters.get(worker_index, Column.ACCEPTING)
        ]
        if own > min(others, default=own):
            self._loop.remove_reader(self._listener)
            self._loop.call_later(YIELD_S, self._accept_after_yield)
        else:
            self._accept()

    def _accept_after_yield(self) -> None:
        """Accepts the connection if no other worker has."""
        if not self.should_exit:
            self._accept()
            self._watch_listener()

    def _accept(self) -> bool:
        """Accepts a connection; returns whether there was one."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False  # another worker has accepted it, or the client has closed it
        except OSError as error:
            if not self._has_failed:
                log.error("no connection can be accepted: %s", error)
            self._has_failed = True
            self._loop.remove_reader(self._listener)
            self._loop.call_later(RETRY_S, self._watch_listener)
            return False
        self._has_failed = False
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opening: asyncio.Task[object] = self._loop.create_task(
            self._loop.connect_accepted_socket(self._make_protocol, connection)
        )
        self._opening.add(opening)
        opening.add_done_callback(self._on_opened)
        return True

    def _on_opened(self, opening: asyncio.Task[object]) -> None:
        self._opening.discard(opening)
        if not opening.cancelled() and (error := opening.exception()):
            log.error("a connection was accepted and lost: %s", error)

    def _make_protocol(self) -> asyncio.Protocol:
        protocol_class: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return protocol_class(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def serve_as_worker(app: FastAPI, listener: socket.socket, counters: SharedCounters, worker_index: int) -> NoReturn:
    """Serves until the end, and ends the process: with 0 only if the engine process has told it to end."""
    gc.freeze()  # as `service.server.serve` does
    FairAcceptor(app, listener, counters, worker_index).run()
    service: WorkerService = app.state.service
    exit_now(1 if service.exit_code is None else service.exit_code)  # does not wait for a decoder that does not end
