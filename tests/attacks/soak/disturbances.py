"""The faults of a machine: more load than the server bears, a stopped process, a killed worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

from tests.attacks.processes import family, sockets_of, start_time, workers_of
from tests.attacks.soak.traffic import Soak

BURST_S = 20.0
STOP_S = 3.0
MOST_WAITING = 600
RESTART_S = 30.0
NOTICED_S = 5.0
"""After this time every client has noticed that its worker is dead."""


class Disturbances:
    """Bursts, stops and deaths of the processes of one server."""

    def __init__(self, pid: int, capacity_per_s: float, seconds: float = BURST_S) -> None:
        self._pid = pid
        self._capacity_per_s = capacity_per_s
        self._burst_s = seconds
        self._stops = 0
        self.kills = 0

    async def burst(self, soak: Soak) -> None:
        """Twice as many requests as the server can answer, each over a connection of its own."""
        soak.expect_overload()
        waiting: set[asyncio.Task[None]] = set()
        begin = time.monotonic()
        count = 0
        while (elapsed := time.monotonic() - begin) < self._burst_s:
            while count < 2 * self._capacity_per_s * elapsed and len(waiting) < MOST_WAITING:
                task = asyncio.create_task(soak.send(soak.random.choice(soak.requests)))
                waiting.add(task)
                task.add_done_callback(waiting.discard)
                count += 1
            soak.expect_overload()
            await asyncio.sleep(0.02)
        await asyncio.gather(*waiting)
        soak.expect_overload()
        soak.seen["requests of bursts"] += count

    async def stop(self, soak: Soak) -> None:
        """SIGSTOP for three seconds, then SIGCONT: of all processes, and of the one with the engine alone in turn."""
        members = list(family(self._pid)) if self._stops % 2 == 0 else [self._pid]
        self._stops += 1
        for member in members:
            os.kill(member, signal.SIGSTOP)
        try:
            await asyncio.sleep(STOP_S)
        finally:
            for member in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGCONT)
        soak.note("stopped for 3 s")

    async def kill_worker(self, soak: Soak) -> None:
        """kill -9 of the oldest worker; it is replaced."""
        victim = min(workers_of(self._pid), key=start_time)
        os.kill(victim, signal.SIGSTOP)  # so that it takes no connection while its own are counted
        await asyncio.sleep(0.01)
        ports = sockets_of(victim, soak.port)
        soak.killed_ports |= ports
        before = len(workers_of(self._pid))
        os.kill(victim, signal.SIGKILL)
        self.kills += 1
        end = time.monotonic() + RESTART_S
        while len(workers := workers_of(self._pid)) < before or victim in workers:
            if time.monotonic() > end:
                soak.note("worker killed and not replaced")
                return
            await asyncio.sleep(0.2)
        soak.note("worker killed and replaced")
        await asyncio.sleep(NOTICED_S)
        soak.killed_ports -= ports  # the kernel may give them to other connections
