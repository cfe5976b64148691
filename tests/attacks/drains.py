"""Ends of the service under clients with a new connection per request, and deaths of workers.

.venv/bin/python -m tests.attacks.drains    # 1 minute

The servers have a fake engine. They end by SIGTERM and by SIGHUP, without HTTP workers and with two.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter

import httpx

from tests.attacks.processes import start_time, workers_of
from tests.attacks.server import AttackedServer, describe, report, serve
from tests.support.clients import grey

IMAGE = grey(5)
CLIENTS = 16


class Clients:
    """Clients that send one request after the other, each over a connection of its own."""

    def __init__(self, server: AttackedServer, count: int = CLIENTS) -> None:
        self.answers: Counter[str] = Counter()
        self._url = f"{server.url}/embed"
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        while not self._stop.is_set():
            answer = ask(self._url)
            with self._lock:
                self.answers[answer] += 1
            if answer == "refused":
                return


def ask(url: str) -> str:
    """The status, with the code of an error; "refused" where nobody listens, else the error of the connection."""
    try:
        answer = httpx.post(url, content=IMAGE, timeout=15)
    except httpx.ConnectError:
        return "refused"
    except httpx.TransportError as error:
        return str(error) or type(error).__name__
    return describe(answer)


def attack_drain(workers: int, number: signal.Signals, seen: Counter[str]) -> None:
    with serve(http_workers=workers) as server:
        clients = Clients(server)
        time.sleep(1)
        server.process.send_signal(number)
        code = server.process.wait(60)
        clients.stop()
        seen.update({f"drain: {answer}": count for answer, count in clients.answers.items()})
        seen[f"exit code {code}"] += 1


def attack_workers(seen: Counter[str]) -> None:
    """kill -9 of a worker, again and again, while a client asks over new connections."""
    with serve(http_workers=2) as server:
        clients = Clients(server, 1)
        for _ in range(5):
            os.kill(min(workers_of(server.process.pid), key=start_time), signal.SIGKILL)
            time.sleep(4)
        clients.stop()
        seen.update({f"worker killed: {answer}": count for answer, count in clients.answers.items()})


# What a dead worker had accepted is lost with it.
EXPECTED = {
    "drain: 200",
    "drain: 503 draining",
    "drain: refused",
    "exit code 0",
    "worker killed: 200",
    "worker killed: [Errno 104] Connection reset by peer",
    "worker killed: Server disconnected without sending a response.",
}


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    seen: Counter[str] = Counter()
    for workers in (0, 2):
        for number in (signal.SIGTERM, signal.SIGHUP):
            attack_drain(workers, number, seen)
    attack_workers(seen)
    return report("drains", seen, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
