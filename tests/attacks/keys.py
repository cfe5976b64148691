"""Clients that exceed the limits of their key, and that write into the log.

.venv/bin/python -m tests.attacks.keys    # 1 minute

The servers have a fake engine, without HTTP workers and with two.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter

import httpx

from tests.attacks.server import AttackedServer, post, report, serve, status
from tests.attacks.time_limit import end_after
from tests.support.clients import grey

IMAGE = grey(5)
SECONDS = 5.0
RATE, BURST, IN_FLIGHT = 2, 16, 4


def attack_limits(server: AttackedServer, seen: Counter[str]) -> None:
    """16 clients of one key send as fast as they can."""
    counts: Counter[int] = Counter()
    lock, started = threading.Lock(), time.monotonic()

    def send() -> None:
        while time.monotonic() - started < SECONDS:
            answer = httpx.post(f"{server.url}/embed", content=IMAGE, headers={"x-api-key": "one"}, timeout=30)
            with lock:
                counts[answer.status_code] += 1

    threads = [threading.Thread(target=send) for _ in range(16)]
    for thread in threads:
        thread.start()
    time.sleep(SECONDS / 2)
    other = httpx.post(f"{server.url}/embed", content=IMAGE, headers={"x-api-key": "two"}, timeout=30)
    seen[f"another key meanwhile: {other.status_code}"] += 1
    for thread in threads:
        thread.join()
    allowed = BURST + RATE * (time.monotonic() - started) + 1
    seen["images of the key"] += counts[200]
    seen["429"] += counts[429]
    if counts[200] > allowed or counts[200] < BURST or set(counts) - {200, 429}:
        seen[f"{dict(counts)} where {allowed:.0f} were allowed"] += 1


FORGED = "x status=200 error=none FORGED\x85"


def attack_log(server: AttackedServer, seen: Counter[str]) -> None:
    headers = ["X-API-Key: two", "Connection: close"]
    sent = [
        post(IMAGE, *headers, f"traceparent: 00-{FORGED}"),
        post(IMAGE, *headers, f"X-Request-Id: {FORGED}"),
        post(IMAGE, *headers, f"X-Forwarded-For: {FORGED}"),
        post(IMAGE, *headers, f"User-Agent: {FORGED}"),
        post(IMAGE, *headers, path="/embed?api_key=HUSH"),
        post(IMAGE, *headers, path="/embed?HUSH"),
        post(IMAGE, *headers, path="/embed?pool=mean&HUSH=" + "a" * 50_000),
        post(IMAGE, *headers, path="/HUSH"),
    ]
    statuses = Counter(status(server.exchange(request)) for request in sent)
    log = server.log
    seen["written to the log"] += len(sent)
    for trace in ("FORGED", "HUSH", "\x85"):
        seen[f"log has {trace!r}"] += log.count(trace)
    seen[f"log line of {max(map(len, log.splitlines()))} characters"] += max(map(len, log.splitlines())) > 2000
    seen["log attacks answered 5xx"] += sum(count for answered, count in statuses.items() if answered.startswith("5"))


def attack_paths(server: AttackedServer, seen: Counter[str]) -> None:
    for path in ("/metrics", "//metrics", "/metrics/", "/docs", "/openapi.json", "/%6detrics"):
        seen[f"keyed path without a key: {httpx.get(server.url + path).status_code}"] += 1
    for path in ("/livez", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready"):
        seen[f"probe: {httpx.get(server.url + path).status_code}"] += 1


EXPECTED = {
    "another key meanwhile: 200",
    "images of the key",
    "429",
    "written to the log",
    "keyed path without a key: 401",
    "probe: 200",
}


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    end_after(minutes=10)
    seen: Counter[str] = Counter()
    for workers in (0, 2):
        settings = {"key_images_per_s": RATE, "max_images": BURST, "key_max_requests": IN_FLIGHT, "api_keys": "one,two"}
        with serve(http_workers=workers, keyed_paths="/metrics,/docs,/openapi.json", **settings) as server:
            attack_log(server, seen)
            attack_paths(server, seen)
            attack_limits(server, seen)
    return report("keys", seen, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
