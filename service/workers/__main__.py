"""`python -m service.workers CHANNEL LISTENER LEDGER SLOTS ROW ROWS`: a worker, started by the device process."""

from __future__ import annotations

import signal
import socket
import sys


def main() -> None:
    """Serves with the file descriptors that the device process has handed down."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal it comes to everybody, also while this is loading
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel, listener, ledger_fd, slots_fd, row, rows = map(int, sys.argv[1:])

    from service.api.app import create_app
    from service.logs import configure_logging
    from service.settings import Settings
    from service.workers.acceptor import serve_as_worker
    from service.workers.channel import receive_first
    from service.workers.shared_counters import SharedCounters
    from service.workers.worker import WorkerService

    end = socket.socket(fileno=channel)
    try:
        settings = Settings(**receive_first(end))
    except EOFError:
        sys.exit(1)
    configure_logging(settings.log_format)
    ledger = SharedCounters(ledger_fd, rows)
    service = WorkerService(settings, end, ledger, row, slots_fd)
    serve_as_worker(create_app(service=service), socket.socket(fileno=listener), ledger, row)


if __name__ == "__main__":
    main()
