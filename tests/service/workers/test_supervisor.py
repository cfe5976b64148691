"""Workers that die, that never start and that do not end: each is a small stand-in process."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.workers.messages import Kind
from service.workers.shared_counters import Column, SharedCounters
from service.workers.supervisor import RestartPolicy, WorkerSupervisor
from service.workers.worker_connection import WorkerConnection
from tests.support.waiting import until

pytestmark = pytest.mark.live

BRIEF = RestartPolicy(
    start_timeout_s=60,
    first_delay_s=0.02,
    longest_delay_s=0.08,
    stable_after_s=60,
    exit_timeout_s=60,
    max_failed_starts=3,
)
"""Replaces workers soon, and has patience with those that start and those that end."""
RUNS = """
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
"""Sends HELLO, and again when it is asked for its counters, and ends when it receives EXIT."""
WORKER = (sys.executable, "-S", "-c", RUNS)


class Recorder:
    """A supervisor, and everything that it has told its listener."""

    def __init__(self, command: tuple[str, ...], workers: int, policy: RestartPolicy) -> None:
        self.counters = SharedCounters.create(workers)
        self.socket = socket.socket()
        self.supervisor = WorkerSupervisor(self.counters, self.socket, b"{}", self, command, policy)
        self.started: list[WorkerConnection] = []
        self.ended: list[int] = []
        self.failed: list[str] = []

    def on_worker_started(self, connection: WorkerConnection) -> None:
        self.started.append(connection)

    def on_message(self, connection: WorkerConnection, kind: Kind, content: memoryview) -> None:
        raise AssertionError(f"no worker sends {kind}")

    def on_worker_ended(self, worker_index: int) -> None:
        self.ended.append(worker_index)

    def on_workers_failed(self, reason: str) -> None:
        self.failed.append(reason)

    def runs(self, worker_index: int = 0) -> bool:
        connection = self.supervisor.connections.get(worker_index)
        return connection is not None and connection.started

    def processes(self) -> list[int]:
        return [process.pid for process in self.supervisor._processes.values()]


@contextlib.asynccontextmanager
async def supervised(
    command: tuple[str, ...], workers: int = 1, policy: RestartPolicy = BRIEF
) -> AsyncIterator[Recorder]:
    recorder = Recorder(command, workers, policy)
    recorder.supervisor.start()
    try:
        yield recorder
    finally:
        await recorder.supervisor.stop()
        recorder.socket.close()
        recorder.counters.close()
    assert not recorder.supervisor.connections


def run(work: Any) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_all_workers_run_and_all_end(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with supervised(WORKER, workers=2) as recorder:
            await until(lambda: recorder.runs(0) and recorder.runs(1))
            assert sorted(recorder.supervisor.connections) == [0, 1]
        assert sorted(recorder.ended) == [0, 1] and not recorder.failed

    run(main())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_dead_worker_is_replaced_and_its_counters_are_cleared(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with supervised(WORKER) as recorder:
            await until(recorder.runs)
            recorder.counters.set(0, Column.BYTES, 5)
            os.kill(recorder.processes()[0], signal.SIGKILL)
            await until(lambda: len(recorder.started) == 2 and recorder.runs())
            assert recorder.ended == [0] and recorder.counters.total(Column.BYTES) == 0

    run(main())
    assert "worker 0 has died" in caplog.text and "signal 9" in caplog.text


def test_workers_that_die_at_once_are_replaced_ever_more_slowly_and_in_the_end_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with supervised(("sh", "-c", "exit 3"), workers=2) as recorder:
            await until(lambda: recorder.failed)
        assert "exit code 3" in recorder.failed[0]
        assert len(recorder.started) <= 8

    run(main())
    assert "another one in 0.0 s" in caplog.text and "another one in 0.1 s" in caplog.text


def test_while_one_worker_runs_another_is_started_again_for_ever(tmp_path: Any) -> None:
    """Worker 0 starts, worker 1 never does."""
    code = f"import sys\nif sys.argv[5] == '1': sys.exit(3)\n{RUNS}"

    policy = RestartPolicy(first_delay_s=0.02, longest_delay_s=0.02, max_failed_starts=3)

    async def main() -> None:
        async with supervised((sys.executable, "-S", "-c", code), workers=2, policy=policy) as recorder:
            await until(recorder.runs)
            await until(lambda: recorder.ended.count(1) >= 7)
            assert not recorder.failed and recorder.runs()

    run(main())


def test_a_worker_that_takes_no_connections_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    policy = RestartPolicy(
        start_timeout_s=0.1, first_delay_s=0.02, longest_delay_s=0.02, exit_timeout_s=0.5, max_failed_starts=2
    )

    async def main() -> None:
        async with supervised(("sh", "-c", "exec sleep 60"), policy=policy) as recorder:
            await until(lambda: recorder.failed)
            assert "signal 9" in recorder.failed[0]

    run(main())
    assert "takes no connections: killing it" in caplog.text


def test_a_command_that_does_not_exist_is_reported() -> None:
    async def main() -> None:
        async with supervised(("/there/is/no/such/program",)) as recorder:
            await until(lambda: recorder.failed)
            assert "No such file" in recorder.failed[0]

    run(main())


def test_a_worker_that_does_not_end_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    deaf = RUNS.replace("break", "import time; time.sleep(60)")
    policy = RestartPolicy(exit_timeout_s=0.25)

    async def main() -> None:
        async with supervised((sys.executable, "-S", "-c", deaf), policy=policy) as recorder:
            await until(recorder.runs)
            [process] = recorder.processes()
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)

    run(main())
    assert "does not end: killing it" in caplog.text


def test_a_worker_that_does_not_answer_any_more_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    policy = RestartPolicy(start_timeout_s=5, answer_timeout_s=1)

    async def main() -> None:
        async with supervised(WORKER, workers=2, policy=policy) as recorder:
            await until(lambda: recorder.runs(0) and recorder.runs(1))
            connections = recorder.supervisor.connections.values()
            # HELLO, and the answer to the first request: the second is sent when the time of the first is over
            await until(lambda: all(connection.messages >= 3 for connection in connections))
            assert not recorder.ended, "workers that answer are left alone"
            os.kill(recorder.processes()[0], signal.SIGSTOP)
            await until(lambda: recorder.ended)
            assert len(recorder.ended) == 1

    run(main())
    assert "does not answer: killing it" in caplog.text
