"""Ends of the service under clients with a new connection per request, and deaths of workers.

.venv/bin/python -m tests.attacks.drains    # 1 minute

The servers have a fake engine. They end by SIGTERM and by SIGHUP, without HTTP workers and with two.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter

from tests.attacks.kills.clients import CONNECTION_LOST, Clients
from tests.attacks.processes import start_time, workers_of
from tests.attacks.server import report, serve
from tests.attacks.time_limit import end_after

CLIENTS = 16


def attack_drain(workers: int, number: signal.Signals, seen: Counter[str]) -> None:
    with serve(http_workers=workers) as server:
        with Clients(server.url, CLIENTS) as clients:
            time.sleep(1)
            server.process.send_signal(number)
            code = server.process.wait(60)
        seen.update({f"drain: {answer}": count for answer, count in clients.answers.items()})
        seen[f"exit code {code}"] += 1


def attack_workers(seen: Counter[str]) -> None:
    """kill -9 of a worker, again and again, while a client asks over new connections."""
    with serve(http_workers=2) as server:
        with Clients(server.url, 1) as clients:
            for _ in range(5):
                os.kill(min(workers_of(server.process.pid), key=start_time), signal.SIGKILL)
                time.sleep(4)
        seen.update({f"worker killed: {answer}": count for answer, count in clients.answers.items()})


# What a dead worker had accepted is lost with it.
EXPECTED = {
    "drain: 200",
    "drain: 503 draining",
    "drain: refused",
    "exit code 0",
    "worker killed: 200",
    f"worker killed: {CONNECTION_LOST}",
}


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    end_after(minutes=10)
    seen: Counter[str] = Counter()
    for workers in (0, 2):
        for number in (signal.SIGTERM, signal.SIGHUP):
            attack_drain(workers, number, seen)
    attack_workers(seen)
    return report("drains", seen, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
