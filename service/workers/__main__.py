"""`python -m service.workers CHANNEL LISTENER COUNTERS SLOTS WORKER_INDEX WORKERS` runs a worker.

The engine process starts it. The first four arguments are file descriptors that the worker inherits.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys


def main() -> None:
    """Serves as a worker until the end, with the file descriptors of the engine process."""
    # A terminal sends its signals to every process, even while this one is still loading.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel_fd, listener_fd, counters_fd, slots_fd, worker_index, workers = map(int, sys.argv[1:])
    _close_inherited({channel_fd, listener_fd, counters_fd, slots_fd})

    from service.api.app import create_app
    from service.freed_memory import share_one_arena, start_trimming
    from service.logs import configure_logging
    from service.settings import Settings
    from service.tracing.configuration import load_tracer
    from service.workers.acceptor import serve_as_worker
    from service.workers.channel import receive_first
    from service.workers.shared_counters import SharedCounters
    from service.workers.worker import WorkerService

    channel = socket.socket(fileno=channel_fd)
    try:
        settings = Settings(**receive_first(channel))
    except EOFError:
        sys.exit(1)
    configure_logging(settings.log_format)
    share_one_arena()
    start_trimming()
    counters = SharedCounters(counters_fd, workers, len(settings.api_keys))
    service = WorkerService(settings, channel, counters, worker_index, slots_fd, load_tracer())
    serve_as_worker(create_app(service=service), socket.socket(fileno=listener_fd), counters, worker_index)


def _close_inherited(kept: set[int]) -> None:
    """Closes what this process has inherited beside `kept` and the standard streams.

    uvloop closes nothing when it starts a process, and OpenVINO opens the files of an engine so that child processes
    inherit them.
    """
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the descriptor of this list is closed already
            if fd > 2 and fd not in kept and os.get_inheritable(fd):
                os.close(fd)


if __name__ == "__main__":
    main()
