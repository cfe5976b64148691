"""`python -m service.workers CHANNEL LISTENER COUNTERS SLOTS WORKER_INDEX WORKERS` runs a worker.

The engine process starts it. The first four arguments are file descriptors that the worker inherits.
"""

from __future__ import annotations

import signal
import socket
import sys


def main() -> None:
    """Serves as a worker until the end, with the file descriptors of the engine process."""
    # A terminal sends its signals to every process, even while this one is still loading.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    channel_fd, listener_fd, counters_fd, slots_fd, worker_index, workers = map(int, sys.argv[1:])

    from service.api.app import create_app
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
    counters = SharedCounters(counters_fd, workers, len(settings.api_keys))
    service = WorkerService(settings, channel, counters, worker_index, slots_fd, load_tracer())
    serve_as_worker(create_app(service=service), socket.socket(fileno=listener_fd), counters, worker_index)


if __name__ == "__main__":
    main()
