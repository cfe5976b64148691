"""A server whose first HTTP worker loses its channel: each life of the worker one message later than the one before.

`python -m tests.attacks.cut_channel` is the server, with a fake engine. It starts `… cut_channel worker ARGUMENTS` for
each worker, which stands between the engine process and the worker: it hands messages on, and closes both ends within
message k. Even lives count the messages to the worker, odd ones those from it. The file CUT_LIVES has the number of
lives.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from service.workers.messages import HEAD


def serve() -> int:
    """Serves until the end; returns the exit code."""
    from service.serving import run
    from service.settings import load_settings
    from service.workers import engine_process
    from service.workers.supervisor import RestartPolicy, WorkerSupervisor
    from tests.support.fake_server import build

    logging.basicConfig(level=logging.INFO)
    engine_process.WorkerSupervisor = functools.partial(  # type: ignore[assignment, misc]
        WorkerSupervisor,
        command=(sys.executable, "-m", "tests.attacks.cut_channel", "worker"),
        policy=RestartPolicy(longest_delay_s=0.1),
    )
    return run(load_settings(), build)


def run_worker(channel_fd: str, *others: str) -> int:
    """Runs a worker behind a channel that is cut; returns its exit code. Only worker 0 is cut."""
    *fds, worker_index, _ = others
    command = [sys.executable, "-P", "-m", "service.workers"]
    if worker_index != "0":
        os.execv(sys.executable, [*command, channel_fd, *others])
    lives = Path(os.environ["CUT_LIVES"])
    life = int(lives.read_text())
    next_life = lives.with_suffix(".part")
    next_life.write_text(str(life + 1))
    next_life.replace(lives)  # whoever reads the file finds a whole number
    engine = socket.socket(fileno=int(channel_fd))
    own, worker = socket.socketpair()
    keep = [worker.fileno(), *map(int, fds)]
    process = subprocess.Popen([*command, str(worker.fileno()), *others], pass_fds=keep)
    worker.close()
    for number, (source, target) in enumerate(((engine, own), (own, engine))):
        messages = life // 2 if life % 2 == number else None
        threading.Thread(target=relay, args=(source, target, messages, (engine, own)), daemon=True).start()
    return process.wait()


def relay(
    source: socket.socket, target: socket.socket, messages: int | None, ends: tuple[socket.socket, socket.socket]
) -> None:
    """Hands on what comes until an end is closed, or until it closes both within the message after `messages`."""
    try:
        while head := source.recv(HEAD.size, socket.MSG_WAITALL):
            length, _ = HEAD.unpack(head)
            content = source.recv(length, socket.MSG_WAITALL) if length else b""
            if messages == 0:
                target.sendall((head + content)[: (HEAD.size + length) // 2])
                break
            messages = None if messages is None else messages - 1
            target.sendall(head + content)
    except OSError:
        pass  # the other side is gone
    for end in ends:
        with contextlib.suppress(OSError):  # it is closed already
            end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    sys.exit(run_worker(*sys.argv[2:]) if sys.argv[1:2] == ["worker"] else serve())
