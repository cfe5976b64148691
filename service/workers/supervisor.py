"""Starts the workers, and replaces those that die."""

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
from typing import Protocol

from service.workers.messages import NUMBER, Kind
from service.workers.shared_counters import SharedCounters
from service.workers.worker_connection import WorkerConnection

log = logging.getLogger(__name__)
EXIT_OK = "exit code 0"
COMMAND = (sys.executable, "-P", "-m", "service.workers")


@dataclass(frozen=True)
class RestartPolicy:
    """When to kill a worker, when to replace a dead one, and when to give up. Times are in seconds."""

    start_timeout_s: float = 60.0
    """The time from a worker's start after which it is killed if it accepts no connections."""
    answer_timeout_s: float = 30.0
    """The time from a request for a worker's counters after which it is killed if it sends nothing."""
    first_delay_s: float = 0.1
    """The delay before a worker that has died is replaced; it doubles for each worker that was not stable."""
    longest_delay_s: float = 10.0
    """The longest delay before a dead worker is replaced."""
    stable_after_s: float = 10.0
    """The lifetime from which a worker counts as stable, so that the delay is the first one again."""
    exit_timeout_s: float = 5.0
    """The time from the message EXIT after which a worker that still runs is killed."""
    max_failed_starts: int = 5
    """The number of failed starts per worker, one after the other while no worker runs, at which to give up."""


class SupervisorListener(Protocol):
    """The receiver of the supervisor's events, which is the engine process."""

    def on_worker_started(self, connection: WorkerConnection) -> None:
        """The process of a worker was started; it does not accept connections yet."""

    def on_message(self, connection: WorkerConnection, kind: Kind, content: memoryview) -> None:
        """A worker has sent a message that its connection does not handle itself."""

    def on_worker_ended(self, worker_index: int) -> None:
        """A worker is dead, and nothing of it is left in the queue or the counters."""

    def on_workers_failed(self, reason: str) -> None:
        """No worker runs, and none can be started."""


class WorkerSupervisor:
    """Keeps as many workers running as the counters have cells for."""

    def __init__(
        self,
        counters: SharedCounters,
        listener_socket: socket.socket,
        settings: bytes,
        listener: SupervisorListener,
        command: Sequence[str] = COMMAND,
        policy: RestartPolicy = RestartPolicy(),
    ) -> None:
        """No worker runs yet.

        Args:
            counters: of all workers; their number is the number of workers.
            listener_socket: the socket on which the workers accept connections.
            settings: content of the message SETTINGS, JSON.
            listener: receives the events.
            command: starts a worker; file descriptors and the worker index follow as arguments.
            policy: says when to kill, when to replace and when to give up.
        """
        self.connections: dict[int, WorkerConnection] = {}
        """The connections to the workers that run, by worker index."""
        self._counters = counters
        self._listener_socket = listener_socket
        self._settings = settings
        self._listener = listener
        self._command = command
        self._policy = policy
        self._failed_starts = 0
        """Number of workers that ended before they accepted connections, since a worker last did."""
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._supervisions: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    def start(self) -> None:
        """Starts all workers."""
        for worker_index in range(self._counters.workers):
            supervision = asyncio.get_running_loop().create_task(self._supervise(worker_index))
            supervision.add_done_callback(self._on_supervision_done)
            self._supervisions.append(supervision)

    async def stop(self) -> None:
        """Tells the workers to end; kills those that do not end, and those that do not accept connections yet."""
        self._stopping.set()
        for worker_index, connection in self.connections.items():
            connection.send(Kind.EXIT)
            if not connection.started:
                _kill(self._processes[worker_index])
        _, late = await asyncio.wait(self._supervisions, timeout=self._policy.exit_timeout_s)
        if late:
            for worker_index, process in self._processes.items():
                log.error("worker %d (process %d) does not end: killing it", worker_index, process.pid)
                _kill(process)
            await asyncio.wait(late, timeout=self._policy.exit_timeout_s)

    async def _supervise(self, worker_index: int) -> None:
        """Runs one worker after the other until the supervisor stops."""
        policy, delay = self._policy, self._policy.first_delay_s
        while not self._stopping.is_set():
            begin = time.monotonic()
            try:
                started, cause = await self._run_worker(worker_index)
            except OSError as error:  # no memory, no processes or no file descriptors left
                started, cause = False, str(error)
            if self._stopping.is_set():
                if started and cause != EXIT_OK:
                    log.error("worker %d has ended with an error: %s", worker_index, cause)
                return
            any_started = started or any(connection.started for connection in self.connections.values())
            self._failed_starts = 0 if any_started else self._failed_starts + 1
            if self._failed_starts >= policy.max_failed_starts * self._counters.workers:
                count = self._failed_starts
                self._listener.on_workers_failed(
                    f"{count} workers, one after the other, have ended before they accepted a connection: {cause}"
                )
                return
            lifetime = time.monotonic() - begin
            stable = lifetime > policy.stable_after_s
            delay = policy.first_delay_s if stable else min(2 * delay, policy.longest_delay_s)
            log.error(
                "worker %d has died after %.1f s (%s): another one in %.1f s", worker_index, lifetime, cause, delay
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)

    def _on_supervision_done(self, supervision: asyncio.Task[None]) -> None:
        if not supervision.cancelled() and (error := supervision.exception()):
            log.critical("the supervision of a worker has failed", exc_info=error)
            self._listener.on_workers_failed(f"the supervision of a worker has failed: {error}")

    async def _run_worker(self, worker_index: int) -> tuple[bool, str]:
        """Runs a worker to its end; returns whether it accepted connections, and the cause of its end."""
        own_end, worker_end = socket.socketpair()
        slots_fd = os.memfd_create("mae-slots")
        connection = WorkerConnection(worker_index, self._counters, slots_fd, self._listener.on_message)
        try:
            await connection.connect(own_end)
            fds = (worker_end.fileno(), self._listener_socket.fileno(), self._counters.fd, slots_fd)
            command = [*self._command, *map(str, (*fds, worker_index, self._counters.workers))]
            process = await asyncio.create_subprocess_exec(*command, pass_fds=fds, stdin=asyncio.subprocess.DEVNULL)
            worker_end.close()
            try:
                return await self._serve_worker(connection, process)
            finally:
                _kill(process)  # usually already dead
        finally:
            connection.close()
            worker_end.close()
            os.close(slots_fd)

    async def _serve_worker(
        self, connection: WorkerConnection, process: asyncio.subprocess.Process
    ) -> tuple[bool, str]:
        """Watches a worker until it has ended and its images and counters are cleared; returns as `_run_worker`."""
        worker_index = connection.worker_index
        connection.send(Kind.SETTINGS, self._settings)
        self.connections[worker_index], self._processes[worker_index] = connection, process
        watch = asyncio.get_running_loop().create_task(self._kill_if_stuck(connection, process))
        try:
            self._listener.on_worker_started(connection)
            if self._stopping.is_set():
                _kill(process)
            code = await process.wait()
            await connection.disconnected.wait()  # its last messages are handled
        finally:
            watch.cancel()
            del self.connections[worker_index], self._processes[worker_index]
            connection.end_all()
            self._counters.clear(worker_index)
            self._listener.on_worker_ended(worker_index)
        return connection.started, f"signal {-code}" if code < 0 else f"exit code {code}"

    async def _kill_if_stuck(self, connection: WorkerConnection, process: asyncio.subprocess.Process) -> None:
        """Kills a worker that never accepts connections, or that does not answer any more."""
        await _sleep_in_steps(self._policy.start_timeout_s, lambda: connection.started)
        problem = "takes no connections"
        if connection.started:
            problem, messages_before = "does not answer", connection.messages - 1
            while connection.messages > messages_before:
                messages_before = connection.messages
                connection.send(Kind.PULL, NUMBER.pack(0))
                await _sleep_in_steps(self._policy.answer_timeout_s)
        log.error("worker %d (process %d) %s: killing it", connection.worker_index, process.pid, problem)
        _kill(process)


async def _sleep_in_steps(seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    """Sleeps in ten steps, or in fewer once `until` is true.

    If this process itself stands still (in a debugger, or on a laptop that sleeps), only the current step passes
    meanwhile: the workers still have the time of the other steps to answer.
    """
    for _ in range(10):
        if not until():
            await asyncio.sleep(seconds / 10)


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):  # the process has ended
        process.kill()
