"""Workers that die, that never begin and that do not leave: stand-ins, a shell each."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from service.workers.channel import Kind
from service.workers.shared_counters import Column, SharedCounters
from service.workers.supervisor import RestartPolicy, WorkerSupervisor
from service.workers.worker_connection import WorkerConnection

pytestmark = pytest.mark.live

BRIEF = RestartPolicy(arrival=5, first=0.02, longest=0.08, stable=5, leave=0.25, stillborn=3)
ARRIVES = """
import socket, sys
from struct import Struct
channel = socket.socket(fileno=int(sys.argv[1]))
head = Struct("<IB3x")
channel.send(head.pack(0, 2))
while True:
    length, kind = head.unpack(channel.recv(head.size, socket.MSG_WAITALL))
    if kind == 14:
        break
    channel.recv(length, socket.MSG_WAITALL)
    if kind == 10:
        channel.send(head.pack(0, 2))
"""
"""Says HELLO, and again when it is asked, and ends when it hears EXIT."""
WORKER = (sys.executable, "-S", "-c", ARRIVES)


class Watched:
    """A crew, and what it has told."""

    def __init__(self, command: tuple[str, ...], rows: int, patience: RestartPolicy) -> None:
        self.ledger = SharedCounters.create(rows)
        self.listener = socket.socket()
        self.crew = WorkerSupervisor(self.ledger, self.listener, b"{}", self._hear, command, patience)
        self.arrivals: list[WorkerConnection] = []
        self.deaths: list[int] = []
        self.hopeless: list[str] = []
        self.crew.on_arrival = self.arrivals.append
        self.crew.on_death = self.deaths.append
        self.crew.on_hopeless = self.hopeless.append

    @staticmethod
    def _hear(desk: WorkerConnection, kind: Kind, content: memoryview) -> None:
        raise AssertionError(f"nobody says {kind}")

    def processes(self) -> list[int]:
        return [process.pid for process in self.crew._processes.values()]

    async def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def crew_of(command: tuple[str, ...], rows: int = 1, patience: RestartPolicy = BRIEF) -> AsyncIterator[Watched]:
    watched = Watched(command, rows, patience)
    watched.crew.start()
    try:
        yield watched
    finally:
        await watched.crew.leave()
        watched.listener.close()
        watched.ledger.close()
    assert not watched.crew.desks


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def test_each_row_has_a_worker_and_all_leave(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with crew_of(WORKER, rows=2) as watched:
            await watched.until(lambda: [desk.arrived for desk in watched.crew.desks.values()] == [True, True])
            assert sorted(watched.crew.desks) == [0, 1]
        assert sorted(watched.deaths) == [0, 1] and not watched.hopeless

    run(main())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_dead_worker_is_replaced_and_holds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with crew_of(WORKER) as watched:
            await watched.until(lambda: watched.crew.desks and watched.crew.desks[0].arrived)
            watched.ledger.set(0, Column.BYTES, 5)
            os.kill(watched.processes()[0], signal.SIGKILL)
            await watched.until(lambda: len(watched.arrivals) == 2 and watched.arrivals[1].arrived)
            assert watched.deaths == [0] and watched.ledger.total(Column.BYTES) == 0

    run(main())
    assert "worker 0 has died" in caplog.text and "signal 9" in caplog.text


def test_those_that_die_at_once_come_slower_and_slower_and_then_no_more(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with crew_of(("sh", "-c", "exit 3"), rows=2) as watched:
            await watched.until(lambda: watched.hopeless)
        assert "exit code 3" in watched.hopeless[0]
        assert len(watched.arrivals) <= 8

    run(main())
    assert "another one in 0.0 s" in caplog.text and "another one in 0.1 s" in caplog.text


def test_while_one_serves_the_others_are_tried_again_for_good(tmp_path: Any) -> None:
    """The worker of row 0 arrives, that of row 1 never does."""
    code = f"import sys\nif sys.argv[5] == '1': sys.exit(3)\n{ARRIVES}"

    patience = RestartPolicy(first=0.02, longest=0.02, stillborn=3)

    async def main() -> None:
        async with crew_of((sys.executable, "-S", "-c", code), rows=2, patience=patience) as watched:
            await watched.until(lambda: 0 in watched.crew.desks and watched.crew.desks[0].arrived)
            await watched.until(lambda: watched.deaths.count(1) >= 7)
            assert not watched.hopeless and watched.crew.desks[0].arrived

    run(main())


def test_one_that_takes_no_connections_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    patience = RestartPolicy(arrival=0.1, first=0.02, longest=0.02, leave=0.5, stillborn=2)

    async def main() -> None:
        async with crew_of(("sh", "-c", "exec sleep 60"), patience=patience) as watched:
            await watched.until(lambda: watched.hopeless)
            assert "signal 9" in watched.hopeless[0]

    run(main())
    assert "takes no connections: killing it" in caplog.text


def test_one_that_cannot_be_started_is_no_silence() -> None:
    async def main() -> None:
        async with crew_of(("/there/is/no/such/program",)) as watched:
            await watched.until(lambda: watched.hopeless)
            assert "No such file" in watched.hopeless[0]

    run(main())


def test_one_that_does_not_leave_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    deaf = ARRIVES.replace("break", "import time; time.sleep(60)")

    async def main() -> None:
        async with crew_of((sys.executable, "-S", "-c", deaf)) as watched:
            await watched.until(lambda: watched.crew.desks and watched.crew.desks[0].arrived)
            [process] = watched.processes()
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)

    run(main())
    assert "does not end: killing it" in caplog.text


def test_one_that_answers_nothing_any_more_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    patience = RestartPolicy(arrival=2, silence=0.2, first=0.02, leave=0.2)

    async def main() -> None:
        async with crew_of(WORKER, rows=2, patience=patience) as watched:
            await watched.until(lambda: [desk.arrived for desk in watched.crew.desks.values()] == [True, True])
            await asyncio.sleep(0.5)
            assert not watched.deaths, "those that answer are left alone"
            os.kill(watched.processes()[0], signal.SIGSTOP)
            await watched.until(lambda: watched.deaths)
            assert len(watched.deaths) == 1

    run(main())
    assert "does not answer: killing it" in caplog.text
