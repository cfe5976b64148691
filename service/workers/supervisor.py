"""The workers: started, and replaced when they die."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.workers.channel import NUMBER, Kind
from service.workers.shared_counters import SharedCounters
from service.workers.worker_connection import MessageHandler, WorkerConnection

log = logging.getLogger(__name__)
EXIT_OK = "exit code 0"
WORKER = (sys.executable, "-P", "-m", "service.workers")


@dataclass(frozen=True)
class RestartPolicy:
    """How long the crew waits for what, in seconds."""

    arrival: float = 60.0
    """For a worker that was started to take connections; then it is killed."""
    silence: float = 30.0
    """For a worker to say anything when it is asked; then it is killed."""
    first: float = 0.1
    """Before a dead worker is replaced, and twice as long for each that follows."""
    longest: float = 10.0
    """Before any worker is replaced."""
    stable: float = 10.0
    """A worker that lived longer than this is replaced as if it were the first that dies."""
    leave: float = 5.0
    """For workers that were told to end; then they are killed."""
    stillborn: int = 5
    """So many workers a row may end before they take a connection, while no other serves."""


class WorkerSupervisor:
    """Keeps one worker in each row of the ledger."""

    def __init__(
        self,
        ledger: SharedCounters,
        listener: socket.socket,
        settings: bytes,
        hear: MessageHandler,
        command: Sequence[str] = WORKER,
        patience: RestartPolicy = RestartPolicy(),
    ) -> None:
        """Nobody is there yet.

        Args:
            ledger: has a row for each worker.
            listener: where they take connections.
            settings: the message that a worker begins with, JSON.
            hear: for `WorkerConnection`.
            command: starts a worker; the file descriptors and its row follow as arguments.
            patience: with workers.
        """
        self.desks: dict[int, WorkerConnection] = {}
        """Of the living."""
        self.on_arrival: Callable[[WorkerConnection], None] = lambda desk: None
        """Called when a worker was started."""
        self.on_death: Callable[[int], None] = lambda row: None
        """Called with its row when a worker is dead and nothing of it is left."""
        self.on_hopeless: Callable[[str], None] = log.critical
        """Called with the reason when no worker serves and those that are started die at once, again and again."""
        self._ledger = ledger
        self._listener = listener
        self._settings = settings
        self._hear = hear
        self._command = command
        self._patience = patience
        self._stillborn = 0
        """Since a worker was last seen to serve."""
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
                _kill(self._processes[row])
        _, late = await asyncio.wait(self._keepers, timeout=self._patience.leave)
        if late:
            for row, process in self._processes.items():
                log.error("worker %d (process %d) does not end: killing it", row, process.pid)
                _kill(process)
            await asyncio.wait(late, timeout=self._patience.leave)

    async def _keep(self, row: int) -> None:
        patience, delay = self._patience, self._patience.first
        while not self._leaving.is_set():
            started = time.monotonic()
            try:
                arrived, cause = await self._one(row)
            except OSError as error:  # no memory, no processes or no file descriptors left
                arrived, cause = False, str(error)
            if self._leaving.is_set():
                if arrived and cause != EXIT_OK:
                    log.error("worker %d has not ended well: %s", row, cause)
                return
            serving = arrived or any(desk.arrived for desk in self.desks.values())
            self._stillborn = 0 if serving else self._stillborn + 1
            if self._stillborn >= patience.stillborn * self._ledger.rows:
                count = self._stillborn
                self.on_hopeless(f"{count} workers in a row have ended before they took a connection: {cause}")
                return
            lived = time.monotonic() - started
            delay = patience.first if lived > patience.stable else min(2 * delay, patience.longest)
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
        desk = WorkerConnection(row, self._ledger, slots, self._hear)
        try:
            await desk.connect(ours)
            fds = (theirs.fileno(), self._listener.fileno(), self._ledger.fd, slots)
            command = [*self._command, *map(str, (*fds, row, self._ledger.rows))]
            process = await asyncio.create_subprocess_exec(*command, pass_fds=fds, stdin=asyncio.subprocess.DEVNULL)
            theirs.close()
            try:
                return await self._served(row, desk, process)
            finally:
                _kill(process)  # as good as always dead already
        finally:
            desk.close()
            theirs.close()
            os.close(slots)

    async def _served(self, row: int, desk: WorkerConnection, process: asyncio.subprocess.Process) -> tuple[bool, str]:
        desk.send(Kind.SETTINGS, self._settings)
        self.desks[row], self._processes[row] = desk, process
        watch = asyncio.get_running_loop().create_task(self._watch(desk, process))
        try:
            self.on_arrival(desk)
            if self._leaving.is_set():
                _kill(process)
            code = await process.wait()
            await desk.gone.wait()  # what it said last is heard
        finally:
            watch.cancel()
            del self.desks[row], self._processes[row]
            desk.end_all()
            self._ledger.clear(row)
            self.on_death(row)
        return desk.arrived, f"signal {-code}" if code < 0 else f"exit code {code}"

    async def _watch(self, desk: WorkerConnection, process: asyncio.subprocess.Process) -> None:
        """Kills a worker that does not arrive, or that answers nothing any more."""
        await _turns(self._patience.arrival, lambda: desk.arrived)
        problem = "takes no connections"
        if desk.arrived:
            problem, asked = "does not answer", desk.messages - 1
            while desk.messages > asked:
                asked = desk.messages
                desk.send(Kind.PULL, NUMBER.pack(0))
                await _turns(self._patience.silence)
        log.error("worker %d (process %d) %s: killing it", desk.row, process.pid, problem)
        _kill(process)


async def _turns(seconds: float, enough: Callable[[], bool] = lambda: False) -> None:
    """Sleeps until it is `enough`, in pieces: however long this process itself stands still, only one passes."""
    for _ in range(10):
        if not enough():
            await asyncio.sleep(seconds / 10)


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        process.kill()
