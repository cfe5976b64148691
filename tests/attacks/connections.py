"""Silent, half-closed, leaving and wrong clients.

.venv/bin/python -m tests.attacks.connections    # 2 minutes

The servers have a fake engine, without HTTP workers and with two; some may open 200 files only.
"""

from __future__ import annotations

import socket
import sys
import time
from collections import Counter

import httpx

from tests.attacks.server import AttackedServer, post, report, serve, status
from tests.attacks.time_limit import end_after
from tests.support.clients import grey

IMAGE = grey(5)
HEADER_TIMEOUT_S = 120
"""So that the silent connections are still open when the last probe comes, also on a busy machine."""
GET = b"GET %s HTTP/1.1\r\n%s\r\n"
HOST = b"Host: x\r\n"
CLOSE = HOST + b"Connection: close\r\n"
"""Else a server below its limit keeps the connection, and a client that reads to its end waits in vain."""
MALFORMED = {
    "no Host": (GET % (b"/livez", b""), "400"),
    "two Hosts": (GET % (b"/livez", HOST * 2), "400"),
    "a transfer coding": (GET % (b"/livez", HOST + b"Transfer-Encoding: gzip, chunked\r\n") + b"0\r\n\r\n", "501"),
    "a long target": (GET % (b"/" + b"a" * 100_000, HOST), "414"),
    "a long header": (GET % (b"/livez", HOST + b"X: " + b"a" * 20_000_000 + b"\r\n"), "431"),
    "many headers": (GET % (b"/livez", HOST + b"X: a\r\n" * 50_000), "431"),
    "a header without an end": (b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000_000, "431"),
}


def attack_malformed(server: AttackedServer, seen: Counter[str]) -> None:
    """Requests that HTTP forbids, or that are too large."""
    for name, (sent, expected) in MALFORMED.items():
        answered = status(server.exchange(sent))
        # A client that is still sending megabytes may lose the answer when the connection is closed.
        fits = answered == expected or (len(sent) > 1_000_000 and answered.endswith("Error"))
        seen["refused as the RFCs say" if fits else f"{name}: {answered}"] += 1


def attack_half_closed(server: AttackedServer, seen: Counter[str]) -> None:
    for _ in range(10):
        seen[f"half-closed: {status(server.exchange(post(IMAGE), ends=True))}"] += 1


def attack_leaving(server: AttackedServer, seen: Counter[str]) -> None:
    for requests in (1, 4):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port), 10) as one:
                one.sendall(post(IMAGE, path="/reconstruct") * requests)
    end = time.monotonic() + 20
    while server.metric("mae_inflight_requests") and time.monotonic() < end:
        time.sleep(0.1)
    seen["left"] += 40
    seen["left: 500"] += int(server.metric(r'mae_requests_total\{code="500"'))
    seen["left: tracebacks"] += server.log.count("Traceback")


def attack_files(server: AttackedServer, seen: Counter[str]) -> None:
    """More silent connections than the process may have files."""
    silent = [socket.create_connection(("127.0.0.1", server.port), 2) for _ in range(400)]
    time.sleep(0.3)
    for path in (b"/livez", b"/readyz", b"/metrics"):
        for _ in range(10):
            seen[f"probe at the limit: {status(server.exchange(GET % (path, CLOSE)))}"] += 1
    seen[f"/embed at the limit: {status(server.exchange(post(IMAGE, 'Connection: close')))}"] += 1
    for one in silent:
        one.close()
    time.sleep(0.5)
    seen[f"/embed afterwards: {httpx.post(f'{server.url}/embed', content=IMAGE, timeout=30).status_code}"] += 1
    said = server.log.count("as MAX_CONNECTIONS allows")
    seen["the log says it at most once per process" if 1 <= said <= 2 else f"the log says it {said} times"] += 1


EXPECTED = {
    "refused as the RFCs say",
    "half-closed: 200",
    "left",
    "probe at the limit: 200",
    "/embed at the limit: 503",
    "/embed afterwards: 200",
    "the log says it at most once per process",
}


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    end_after(minutes=10)
    seen: Counter[str] = Counter()
    for workers in (0, 2):
        with serve(http_workers=workers) as server:
            attack_malformed(server, seen)
            attack_half_closed(server, seen)
            attack_leaving(server, seen)
        with serve(open_files=200, http_workers=workers, header_timeout_s=HEADER_TIMEOUT_S) as server:
            end = time.monotonic() + 60  # a worker that starts late would be below its limit
            while server.log.count("Application startup complete") < workers and time.monotonic() < end:
                time.sleep(0.1)
            attack_files(server, seen)
    return report("connections", seen, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
