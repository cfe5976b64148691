"""The workers: started, and replaced when they die."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Callable

from service.workers.channel import Kind
from service.workers.desk import Desk, Hear
from service.workers.ledger import Ledger

log = logging.getLogger(__name__)
# A worker that dies sooner than this after it was started makes the next one wait twice as long.
STABLE_S = 10.0
BACKOFF_S = (0.1, 10.0)
# So many in a row that never took a connection: the next one would not either.
STILLBORN = 5
LEAVE_S = 5.0


class Crew:
    """Keeps one worker in each row of the ledger."""

    def __init__(self, ledger: Ledger, listener: socket.socket, settings: bytes, hear: Hear) -> None:
        """Nobody is there yet. `settings` is the message that a worker begins with; `hear` is for `Desk`."""
        self.desks: dict[int, Desk] = {}
        """Of the living."""
        self.on_arrival: Callable[[Desk], None] = lambda desk: None
        """Called when a worker was started."""
        self.on_death: Callable[[int], None] = lambda row: None
        """Called with its row when a worker is dead and nothing of it is left."""
        self.on_hopeless: Callable[[str], None] = log.critical
        """Called with the reason when workers die before they take a connection, again and again."""
        self._ledger = ledger
        self._listener = listener
        self._settings = settings
        self._hear = hear
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._leaving = asyncio.Event()

    def start(self) -> None:
        """Starts a worker in every row."""
        for row in range(self._ledger.rows):
            keeper = asyncio.get_running_loop().create_task(self._keep(row))
            keeper.add_done_callback(self._kept)
            self._keepers.append(keeper)

    async def leave(self) -> None:
        """Tells the workers to end; kills those that do not, and those that have not begun."""
        self._leaving.set()
        for row, desk in self.desks.items():
            desk.send(Kind.EXIT)
            if not desk.arrived:
                self._processes[row].kill()
        _, late = await asyncio.wait(self._keepers, timeout=LEAVE_S)
        if late:
            for row, process in self._processes.items():
                log.error("worker %d (process %d) does not end: killing it", row, process.pid)
                process.kill()
            await asyncio.wait(late, timeout=LEAVE_S)

    async def _keep(self, row: int) -> None:
        delay, stillborn = BACKOFF_S[0], 0
        while not self._leaving.is_set():
            started = time.monotonic()
            try:
                arrived, cause = await self._one(row)
            except OSError as error:  # no memory, no processes or no file descriptors left
                arrived, cause = False, str(error)
            if self._leaving.is_set():
                return
            stillborn = 0 if arrived else stillborn + 1
            if stillborn == STILLBORN:
                self.on_hopeless(f"{STILLBORN} workers in a row have ended before they took a connection: {cause}")
                return
            lived = time.monotonic() - started
            delay = BACKOFF_S[0] if lived > STABLE_S else min(2 * delay, BACKOFF_S[1])
            log.error("worker %d has died after %.1f s (%s): another one in %.1f s", row, lived, cause, delay)
            try:
                await asyncio.wait_for(self._leaving.wait(), delay)
            except TimeoutError:
                continue

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and (error := keeper.exception()):
            log.critical("the workers are not kept any more", exc_info=error)
            self.on_hopeless(f"the workers are not kept any more: {error}")

    async def _one(self, row: int) -> tuple[bool, str]:
        """A worker from its start until nothing of it is left: whether it took connections, and what it died of."""
        ours, theirs = socket.socketpair()
        slots = os.memfd_create("mae-slots")
        fds = (theirs.fileno(), self._listener.fileno(), self._ledger.fd, slots)
        try:
            command = [sys.executable, "-P", "-m", "service.workers", *map(str, (*fds, row, self._ledger.rows))]
            process = await asyncio.create_subprocess_exec(*command, pass_fds=fds, stdin=asyncio.subprocess.DEVNULL)
            theirs.close()
            self._processes[row] = process
            ours.setblocking(False)
            desk = Desk(row, self._ledger, slots, self._hear)
            await desk.connect(ours)
            desk.send(Kind.SETTINGS, self._settings)
            self.desks[row] = desk
            self.on_arrival(desk)
            if self._leaving.is_set():
                process.kill()
            code = await process.wait()
            await desk.gone.wait()  # what it said last is heard
            del self.desks[row], self._processes[row]
            desk.end_all()
            self._ledger.clear(row)
            self.on_death(row)
        finally:
            theirs.close()
            os.close(slots)
        return desk.arrived, f"signal {-code}" if code < 0 else f"exit code {code}"
