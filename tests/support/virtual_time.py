"""An event loop whose time jumps to the next timer, with processes and sockets in memory.

Nothing sleeps, no thread runs, and the same seed gives the same order of events. A socket keeps what the kernel
promises for a Unix stream: bytes arrive in order, in pieces of any size, after any delay; when an end is closed or
killed, a beginning of what it has written arrives, and then the end of the stream. It loses, repeats and reorders
nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from typing import Any

from tests.support.virtual_loop import JumpingLoop

OWNER: ContextVar[VirtualProcess | None] = ContextVar("OWNER", default=None)
"""The process to which the running code belongs; None for the one that starts the others."""
PIECES = (1, 3, 8, 60, 4096, 1 << 30)
"""Sizes of the pieces in which a stream arrives."""


class VirtualLoop(JumpingLoop):
    """The loop of all processes."""

    def __init__(self, seed: int, main: Callable[[VirtualProcess], Coroutine[Any, Any, int]]) -> None:
        """Each process that is started runs `main`, which returns its exit code."""
        super().__init__()
        self.random = random.Random(seed)
        self.longest_delay_s = 0.004
        self.processes: list[VirtualProcess] = []
        """All that were ever started."""
        self.kills = True
        """Whether a signal still reaches a process: its parent lives."""
        self.errors: list[Any] = []
        """What the loop would have logged."""
        self._main = main
        self._links: dict[int, Link] = {}
        self._ends: dict[int, tuple[Link, int]] = {}
        self.signal_handlers: dict[int, Callable[[], object]] = {}
        self.set_task_factory(self._make_task)
        self.set_exception_handler(lambda loop, context: self.errors.append(context))

    def add_signal_handler(self, number: int, callback: Callable[..., object], *arguments: Any) -> None:
        """Keeps the handler for `signal_handlers[number]()`."""
        self.signal_handlers[number] = lambda: callback(*arguments)

    def run_in_executor(self, executor: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs `function` on the loop, a little later."""
        future = self.create_future()

        def run() -> None:
            if not future.cancelled():
                try:
                    future.set_result(function(*arguments))
                except Exception as error:
                    future.set_exception(error)

        self.call_later(self.delay(), run)
        return future

    async def create_unix_connection(self, factory: Any, *_: Any, sock: socket.socket, **__: Any) -> Any:
        """Connects an end of a socket pair, which a parent connects before it starts the child."""
        known = self._ends.pop(sock.fileno(), None)
        if known is None:
            tag = len(self._links)
            link = self._links[tag] = Link(self)
            sock.send(tag.to_bytes(4))  # so that the other end is found by whatever descriptor it has
            side = 0
        else:
            link, side = known
        protocol = factory()
        transport = link.connect(side, protocol, sock)
        return transport, protocol

    async def subprocess_exec(self, protocol_factory: Any, *command: Any, **_: Any) -> Any:
        """Starts a process; the last six arguments are those of `python -m service.workers`."""
        channel_fd, _listener, counters_fd, slots_fd, index, workers = map(int, command[-6:])
        end = socket.socket(fileno=os.dup(channel_fd))
        link = self._links[int.from_bytes(end.recv(4))]
        self._ends[end.fileno()] = link, 1
        process = VirtualProcess(self, end, link, os.dup(counters_fd), os.dup(slots_fd), index, workers)
        self.processes.append(process)
        process.start(self._main)
        return process, asyncio.subprocess.SubprocessStreamProtocol(limit=1, loop=self)

    def delay(self) -> float:
        """How long the next step takes, in seconds."""
        return self.random.uniform(0, self.longest_delay_s)

    def _make_task(self, loop: Any, work: Any, **options: Any) -> Any:
        task = asyncio.Task(work, loop=self, **options)
        if (owner := OWNER.get()) is not None:
            owner.tasks.add(task)
            task.add_done_callback(owner.tasks.discard)
        return task


class Link:
    """A pair of connected sockets."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.streams = [Stream(self, 0), Stream(self, 1)]
        """What was written by each side."""
        self.stalled = False
        """Whether nothing arrives, because a process stands still."""

    def connect(self, side: int, protocol: asyncio.Protocol, sock: socket.socket) -> End:
        end = End(self, side, protocol, sock)
        self.streams[1 - side].reader = end
        protocol.connection_made(end)
        self.streams[1 - side].schedule()
        return end

    def stall(self, stalled: bool) -> None:
        self.stalled = stalled
        for stream in self.streams:
            stream.schedule()


class Stream:
    """One direction of a link."""

    def __init__(self, link: Link, writer: int) -> None:
        self.link = link
        self.buffer = bytearray()
        """What has not arrived yet."""
        self.is_ended = False
        self.reader: End | None = None
        self.budget: int | None = None
        """The number of bytes that still can be written before `on_spent` is called; None for any."""
        self.on_spent: Callable[[], object] = lambda: None
        self._is_scheduled = False

    def write(self, data: bytes) -> None:
        if self.is_ended:
            return
        if self.budget is not None and len(data) >= self.budget:
            self.buffer += data[: self.budget]
            self.budget = None
            self.on_spent()
            return
        if self.budget is not None:
            self.budget -= len(data)
        self.buffer += data
        self.schedule()

    def end(self, lost: int = 0) -> None:
        """Writes no more; the last `lost` bytes that have not arrived were never written."""
        if not self.is_ended:
            del self.buffer[max(0, len(self.buffer) - lost) :]
            self.is_ended = True
            self.schedule()

    def schedule(self) -> None:
        if not self._is_scheduled and (self.buffer or self.is_ended):
            self._is_scheduled = True
            self.link.loop.call_later(self.link.loop.delay(), self._arrive)

    def _arrive(self) -> None:
        self._is_scheduled = False
        if self.reader is None or self.link.stalled:
            return
        if self.buffer:
            size = self.link.loop.random.choice(PIECES)
            piece = bytes(self.buffer[:size])
            del self.buffer[:size]
            self.reader.receive(piece)
            self.schedule()
        elif self.is_ended:
            self.reader.disconnect()


class End:
    """The transport of one side of a link."""

    def __init__(self, link: Link, side: int, protocol: asyncio.Protocol, sock: socket.socket) -> None:
        self._stream = link.streams[side]
        self._loop = link.loop
        self._protocol = protocol
        self._socket = sock
        self._context = copy_context()
        self._is_closing = self._is_lost = False

    def write(self, data: bytes) -> None:
        if not self._is_closing:
            self._stream.write(data)

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._stream.end()
            self._loop.call_soon(self.disconnect, context=self._context)

    def receive(self, data: bytes) -> None:
        if not self._is_closing:
            self._run(self._protocol.data_received, data)

    def disconnect(self) -> None:
        if not self._is_lost:
            self._is_closing = self._is_lost = True
            self._stream.end()
            self._socket.close()
            self._run(self._protocol.connection_lost, None)

    def die(self) -> None:
        """The process is gone: its protocol hears nothing more."""
        self._is_closing = self._is_lost = True
        self._socket.close()

    def _run(self, call: Callable[..., object], argument: Any) -> None:
        try:
            self._context.copy().run(call, argument)
        except Exception as error:
            self._loop.errors.append(error)


class VirtualProcess:
    """A process as its parent sees it (the transport of `asyncio.subprocess.Process`), and what it is inside."""

    def __init__(
        self, loop: VirtualLoop, end: socket.socket, link: Link, counters_fd: int, slots_fd: int, index: int, count: int
    ) -> None:
        self.loop, self.end, self.link, self.index, self.count = loop, end, link, index, count
        self.counters_fd, self.slots_fd = counters_fd, slots_fd
        self.started_at = loop.now
        self.returncode: int | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        self.on_death: list[Callable[[], object]] = []
        self._ended = loop.create_future()

    def start(self, main: Callable[[VirtualProcess], Coroutine[Any, Any, int]]) -> None:
        def run() -> None:
            OWNER.set(self)
            self.loop.create_task(main(self)).add_done_callback(self._on_main_done)

        self.context = copy_context()
        self.context.run(run)

    def get_pid(self) -> int:
        return 1000 + self.loop.processes.index(self) if self in self.loop.processes else 0

    async def _wait(self) -> int:
        return int(await asyncio.shield(self._ended))

    def kill(self) -> None:
        """SIGKILL of the parent."""
        if self.loop.kills:
            self.die(-9)

    def die(self, code: int, lost: int = 0) -> None:
        """Ends at once; the last `lost` bytes of what it was writing were not written."""
        if self.returncode is not None:
            return
        self.returncode = code
        own = self.link.streams[0].reader
        if own is not None:
            own.die()
        self.end.close()
        for call in self.on_death:
            call()
        for task in list(self.tasks):
            task.cancel()
        self.link.streams[0].end(len(self.link.streams[0].buffer))
        self.link.streams[1].end(lost)
        self.loop.call_later(self.loop.delay(), lambda: self._ended.done() or self._ended.set_result(code))

    def _on_main_done(self, task: asyncio.Task[int]) -> None:
        if task.cancelled():
            self.die(-9)
        elif error := task.exception():
            self.loop.errors.append(error)
            self.die(1)
        else:
            self.die(task.result())
