"""Where a worker takes connections: all workers share one listening socket, and nobody takes what another is freer for.

One queue of connections for all: a worker that is busy, dead or not there yet leaves nobody waiting in a queue of its
own. But the kernel gives a burst to whoever wakes first, and clients keep their connections. So each takes one at a
time, and one that has more open than another leaves the other a moment to take it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import NoReturn

from fastapi import FastAPI

from service.server import SIGNALS, Server
from service.workers.shared_counters import Column, SharedCounters
from service.workers.worker import WorkerService

log = logging.getLogger(__name__)
YIELD_S = 0.002
# After accept() fails (too many open files): others may close some meanwhile.
PAUSE_S = 1.0


class FairAcceptor(Server):
    """Serves a worker's app until the device process says that it is over."""

    def __init__(self, app: FastAPI, listener: socket.socket, ledger: SharedCounters, row: int) -> None:
        """Takes connections from `listener`."""
        super().__init__(app, "", 0)
        service = app.state.service
        assert isinstance(service, WorkerService)
        self._front = service
        self._listener = listener
        self._ledger = ledger
        self._row = row
        self._opening: set[asyncio.Task[object]] = set()

    @property
    def dismissed(self) -> bool:
        """Whether the device process has said that it is over."""
        return self._front.leaving

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the device process's business; a terminal or a supervisor sends them to all."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to take connections."""
        await super().startup(sockets=[])
        self._loop = asyncio.get_running_loop()
        self._ledger.set(self._row, Column.ACCEPTING, 1)
        self._watch()
        self._front.say_hello()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes no more connections and ends."""
        self._loop.remove_reader(self._listener)
        self._ledger.set(self._row, Column.ACCEPTING, 0)
        await super().shutdown(sockets=[])

    def _watch(self) -> None:
        if not self.should_exit:
            self._loop.add_reader(self._listener, self._on_connection_ready)

    def _on_connection_ready(self) -> None:
        """Somebody is there."""
        ledger, mine = self._ledger, len(self.server_state.connections) + len(self._opening)
        ledger.set(self._row, Column.CONNECTIONS, mine)
        others = [
            ledger.get(row, Column.CONNECTIONS)
            for row in range(ledger.rows)
            if row != self._row and ledger.get(row, Column.ACCEPTING)
        ]
        if mine > min(others, default=mine):
            self._loop.remove_reader(self._listener)
            self._loop.call_later(YIELD_S, self._accept_late)
        else:
            self._accept()

    def _accept_late(self) -> None:
        """Nobody else has taken it, perhaps."""
        if not self.should_exit:
            self._accept()
            self._watch()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was quicker, or the client has left
        except OSError as error:
            log.error("no connection can be taken: %s", error)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(PAUSE_S, self._watch)
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opening: asyncio.Task[object] = self._loop.create_task(
            self._loop.connect_accepted_socket(self._protocol, connection)
        )
        self._opening.add(opening)
        opening.add_done_callback(self._opened)

    def _opened(self, opening: asyncio.Task[object]) -> None:
        self._opening.discard(opening)
        if not opening.cancelled() and (error := opening.exception()):
            log.error("a connection was taken and lost: %s", error)

    def _protocol(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def serve_as_worker(app: FastAPI, listener: socket.socket, ledger: SharedCounters, row: int) -> NoReturn:
    """Serves until the device process says that it is over, and ends the process: with 1 if it ended by itself."""
    gc.freeze()  # as `service.server.serve` does
    door = FairAcceptor(app, listener, ledger, row)
    door.run()
    logging.shutdown()
    os._exit(0 if door.dismissed else 1)  # a decoder that does not end is no reason to stay
