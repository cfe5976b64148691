"""Twice as many requests as the real server can answer, each answer compared byte by byte.

.venv/bin/python -m tests.attacks.overload [--seconds 40] [--workers 0,2]    # 1 minute more than the seconds

The packaged model serves in fp32, half of the time without HTTP workers and half of it with two. Requests arrive at
random at twice the rate that was answered before, whatever becomes of them (an open loop). Each one ends with the bytes
that the idle server has answered, or is refused with a time to wait.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass

import httpx

from service.benchmark.samples import generate_sample
from service.settings import Settings
from tests.attacks.client import FORM, Answer, Connection, Lost, form
from tests.attacks.server import PHOTO, AttackedServer, report, serve
from tests.attacks.time_limit import end_after

OVERLOAD = 2.0
CAPACITY_S = 6.0
CAPACITY_CONNECTIONS = 16
FORM_IMAGES = 4
MAX_CONNECTIONS = 800
"""Requests under way at once; one more is not sent, and counted."""
IDLE_S = 30.0
"""Connections are not used again later: the server closes them after 65 s."""
SETTINGS = Settings()
LATE = "answered 504, since a full queue takes longer than REQUEST_TIMEOUT_S on this machine"
PROBE_S = 0.25
LATE_S = 1.0
PROBES = ("/livez", "/readyz", "/metrics")
REQUESTS = r'mae_requests_total\{.*endpoint="/(embed|reconstruct)"'
EMBED = (
    "",
    "?pool=cls",
    "?normalize=true",
    "?encoding=base64",
    "?keep=0.5&seed=3",
    "?keep=0.25&seed=4",
    "?pool=tokens&keep=0.1&seed=5",
)
RECONSTRUCT = tuple(
    f"?mask_ratio={ratio}&strategy={strategy}&seed={seed}"
    for ratio in (0.5, 0.75, 0.9)
    for strategy, seed in (("random", 1), ("random", 2), ("block", 3), ("grid", 4))
)


@dataclass
class Exchange:
    """A request as it goes over the wire, but for its id, and the answer that it must get."""

    path: str
    content_type: str
    body: bytes
    images: int = 1
    expected: bytes = b""

    def encode(self, name: str) -> bytes:
        """The request with an id."""
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {name}\r\nContent-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body


def make_exchanges() -> list[Exchange]:
    """Requests of one image and of several, of which each has another answer."""
    files = [PHOTO]
    for sample in (
        generate_sample("JPEG", 500, 334, 4),
        generate_sample("PNG", 320, 240, 2),
        generate_sample("WEBP", 640, 427, 2),
    ):
        files += sample.files
    raw = "application/octet-stream"
    exchanges = [Exchange(f"/embed{query}", raw, file) for file in files for query in EMBED]
    exchanges += [Exchange(f"/reconstruct{query}", raw, file) for file in files for query in RECONSTRUCT]
    return exchanges + [
        Exchange("/embed", FORM, form([file, files[(number + step) % len(files)]] * 2), FORM_IMAGES)
        for number, file in enumerate(files)
        for step in (1, 2)
    ]


class Load:
    """Requests to one server, over connections that are kept open."""

    def __init__(self, server: AttackedServer, exchanges: list[Exchange], generator: random.Random) -> None:
        """Sends nothing yet."""
        self.seen: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.images = 0
        """Images of requests that were answered 200."""
        self._server = server
        self._exchanges = exchanges
        self._answers = {exchange.expected for exchange in exchanges}
        self._generator = generator
        self._idle: list[tuple[float, Connection]] = []
        """Connections without a request, and since when; the one that was used last is the last."""
        self._running: set[asyncio.Task[None]] = set()

    async def record(self) -> None:
        """Asks for the expected answers, one after the other."""
        for exchange in self._exchanges:
            answer = await self._exchange(exchange, "expected")
            if answer.status != 200:
                raise RuntimeError(f"{exchange.path} is answered {answer.status}: {answer.body[:200]!r}")
            exchange.expected = answer.body

    async def measure_capacity(self) -> float:
        """Requests per second that are answered when `CAPACITY_CONNECTIONS` of them are always under way."""
        end, answered = time.monotonic() + CAPACITY_S, 0

        async def send() -> None:
            nonlocal answered
            while time.monotonic() < end:
                await self._request()
                answered += 1

        await asyncio.gather(*(send() for _ in range(CAPACITY_CONNECTIONS)))
        return answered / CAPACITY_S

    async def overload(self, rate: float, seconds: float) -> None:
        """Sends `rate` requests per second at random moments, and waits for all answers."""
        moment = time.monotonic()
        end = moment + seconds
        while (moment := moment + self._generator.expovariate(rate)) < end:
            if (pause := moment - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            if len(self._running) >= MAX_CONNECTIONS:
                self.seen["not sent"] += 1
                continue
            task = asyncio.create_task(self._request())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        if self._running:
            await asyncio.wait(self._running)
        for _, connection in self._idle:
            connection.close()
        self._idle = []

    async def _request(self) -> None:
        """Sends one request, and counts what becomes of it."""
        exchange, name = self._generator.choice(self._exchanges), uuid.uuid4().hex
        self.seen["sent"] += 1
        try:
            answer = await self._exchange(exchange, name)
        except Lost as lost:
            self.seen[f"lost: {lost}"] += 1
            return
        except OSError as error:
            self.seen[f"not connected: {type(error).__name__}"] += 1
            return
        self.statuses[answer.status] += 1
        if answer.headers.get(b"x-request-id") != name.encode():
            self.seen["foreign ids"] += 1
        if answer.status == 200:
            self.images += exchange.images
            right = answer.body == exchange.expected
            self.seen["right" if right else "foreign answers" if answer.body in self._answers else "wrong bytes"] += 1
        elif answer.status in (429, 503):
            waits = answer.headers.get(b"retry-after", b"").isdigit()
            self.seen[f"refused {answer.status}" if waits else f"{answer.status} without Retry-After"] += 1
        else:
            self.seen[f"answered {answer.status}"] += 1

    async def _exchange(self, exchange: Exchange, name: str) -> Answer:
        while self._idle and time.monotonic() - self._idle[0][0] > IDLE_S:
            self._idle.pop(0)[1].close()
        connection = self._idle.pop()[1] if self._idle else await Connection.open(self._server.port)
        answer = await connection.exchange(exchange.encode(name))
        if connection.is_open:
            self._idle.append((time.monotonic(), connection))
        return answer


class Probes:
    """Probes and scrapes beside the load, each over a connection of its own; use it as a context manager."""

    def __init__(self, server: AttackedServer) -> None:
        """Sends nothing yet."""
        self.seen: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._server = server
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Probes:
        """Begins to ask."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(PROBE_S):
            for path in PROBES:
                begin = time.monotonic()
                try:
                    status = str(httpx.get(f"{self._server.url}{path}", timeout=30).status_code)
                except httpx.TransportError as error:
                    status = type(error).__name__
                seconds = time.monotonic() - begin
                self.slowest_s = max(self.slowest_s, seconds)
                self.seen["probes" if status == "200" else f"probe {path}: {status}"] += 1
                self.seen["probes late"] += seconds > LATE_S


def attack(workers: int, seconds: float, exchanges: list[Exchange], seen: Counter[str], rate: float | None) -> None:
    """Overloads a server for some seconds; the first one tells the right answers."""
    with serve(real=True, precision="fp32", http_workers=workers) as server:
        asyncio.run(attack_server(server, workers, seconds, exchanges, seen, rate))
        if "Traceback" in server.log:
            seen["tracebacks"] += server.log.count("Traceback")
        server.process.terminate()
        seen[f"exit code {server.process.wait(60)}"] += 1


async def attack_server(
    server: AttackedServer,
    workers: int,
    seconds: float,
    exchanges: list[Exchange],
    seen: Counter[str],
    rate: float | None,
) -> None:
    """Measures the capacity of a server, and overloads it."""
    generator = random.Random(workers)
    if not exchanges[0].expected:
        await Load(server, exchanges, generator).record()
    measured = Load(server, exchanges, generator)
    capacity = await measured.measure_capacity()
    load = Load(server, exchanges, generator)
    rate = rate or OVERLOAD * capacity
    before = server.metric(REQUESTS)
    with Probes(server) as probes:
        begin = time.monotonic()
        await load.overload(rate, seconds)
        took = time.monotonic() - begin
    if load.images / took * SETTINGS.request_timeout_s < SETTINGS.queue_images:
        load.seen[LATE] += load.seen.pop("answered 504", 0)
    counted = server.metric(REQUESTS) - before
    if counted != load.statuses.total():
        seen[f"the server has counted {counted:.0f} of {load.statuses.total()}"] += 1
    print(
        f"HTTP_WORKERS={workers}: {capacity:.0f} requests/s answered in a closed loop, {rate:.0f}/s sent for "
        f"{seconds:.0f} s, {load.seen['right'] / took:.0f}/s answered in {took:.0f} s; "
        f"slowest probe {probes.slowest_s:.2f} s",
        file=sys.stderr,
    )
    seen.update(load.seen)
    seen.update(probes.seen)
    seen["wrong before the overload"] += measured.statuses.total() - measured.seen["right"]


EXPECTED = {"expected answers", "sent", "right", "refused 429", "refused 503", "probes", "exit code 0", LATE}


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40, help="in all")
    parser.add_argument("--workers", default="0,2", help="HTTP_WORKERS of the servers, which share the seconds")
    parser.add_argument("--rate", type=float, help="requests per second; twice the measured ones by default")
    options = parser.parse_args()
    end_after(minutes=15 + options.seconds / 60)
    exchanges = make_exchanges()
    all_workers = [int(number) for number in options.workers.split(",")]
    seen: Counter[str] = Counter()
    for workers in all_workers:
        attack(workers, options.seconds / len(all_workers), exchanges, seen, options.rate)
    seen["expected answers"] += len({exchange.expected for exchange in exchanges})
    return report("overload", seen, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
