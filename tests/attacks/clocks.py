"""Wall clocks that are wrong or jump, time zones, and processes that are suspended.

.venv/bin/python -m tests.attacks.clocks [offsets] [load] [rate] [deadlines] [zones] [suspension]    # 5 minutes

The clock is moved by `wall_clock.c`, which is preloaded. Without gcc that part is counted as not tried. As with any
change of the wall clock, the monotonic clock goes on.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import httpx

from tests.attacks.processes import family
from tests.attacks.server import AttackedServer, describe, report, serve
from tests.attacks.time_limit import end_after
from tests.support.clients import grey
from tests.support.fake_server import POISON

PARTS = ("offsets", "load", "rate", "deadlines", "zones", "suspension")
DAY_S, YEAR_S = 86_400, 31_556_952
OFFSETS = {"+1 day": DAY_S, "-1 day": -DAY_S, "+10 years": 10 * YEAR_S, "-50 years": -50 * YEAR_S}
ZONES = ("Asia/Kathmandu", "Pacific/Kiritimati", "America/St_Johns", "None/Such")
IMAGE = grey(5)
LOAD_S, JUMP_S, STOP_S = 12.0, 0.3, 40.0
RATE, BURST = 4, 8
LIMIT_S = 3.0
"""Time after which a call of the fake engine hangs."""


class Clock:
    """The wall clock of servers, which can be set while they run."""

    def __init__(self, folder: Path) -> None:
        """Compiles the library that moves it.

        Raises:
            FileNotFoundError: there is no gcc.
        """
        self._file, library = folder / "offset", folder / "wall_clock.so"
        source = Path(__file__).with_name("wall_clock.c")
        subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-o", library, source], check=True)
        self._file.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "WALL_CLOCK_OFFSET": str(self._file)}
        """What a process needs to see this clock."""

    def set(self, offset_s: int) -> None:
        """Moves it by seconds from the true time."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("=q", offset_s))

    @contextmanager
    def jump(self) -> Iterator[None]:
        """Sets the clock again and again until the block is left."""
        ended = threading.Event()

        def jump() -> None:
            while not ended.is_set():
                for offset in (*OFFSETS.values(), 0):
                    self.set(offset)
                    ended.wait(JUMP_S)

        thread = threading.Thread(target=jump)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def ask(server: AttackedServer, shade: int = 5, key: str = "one") -> tuple[str, float, httpx.Headers]:
    """The status of an answer, with the code of an error; its seconds and headers."""
    begin = time.monotonic()
    try:
        answer = httpx.post(f"{server.url}/embed", content=grey(shade), headers={"x-api-key": key}, timeout=120)
    except httpx.TransportError as error:
        return type(error).__name__, 0.0, httpx.Headers()
    return describe(answer), time.monotonic() - begin, answer.headers


def attack_offsets(clock: Clock, seen: Counter[str]) -> None:
    """Real engines from a cache of the true time, and log lines of the false one."""
    with serve(real=True, precision="fp32"):
        pass  # it has filled the cache
    for name, offset in OFFSETS.items():
        clock.set(offset)
        with serve(real=True, fake=clock.environment, precision="fp32", log_format="json") as server:
            seen[f"{name}: {ask(server)[0]}"] += 1
            text = server.log
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        years = {datetime.fromisoformat(line["time"]).year - datetime.now().year for line in lines}
        expected = {"+10 years": {10}, "-50 years": {-50}}.get(name, {0})
        seen[f"log: {'times of the clock' if years == expected else f'years {years} for {name}'}"] += 1
        seen["log: the engine was made again"] += "making the engine" in text
    clock.set(0)


def attack_zones(seen: Counter[str]) -> None:
    for zone in ZONES:
        with serve(fake={"TZ": zone}) as server:
            seen[f"time zone: {ask(server)[0]}"] += 1


def attack_load(clock: Clock, workers: int, seen: Counter[str]) -> None:
    """Eight clients, one of them with a limited rate, while the clock jumps."""
    settings = {"api_keys": "one,two", "key_images_per_s": 0, "http_workers": workers, "request_timeout_s": 5}
    counts: Counter[str] = Counter()
    slowest = 0.0
    with serve(fake=clock.environment | {"FAKE_S": "0.02"}, drift_sample=1, cache_mb=10, **settings) as server:
        begin = time.monotonic()

        def send(number: int) -> None:
            nonlocal slowest
            while time.monotonic() - begin < LOAD_S:
                answer, seconds, _ = ask(server, number)
                counts[answer] += 1
                slowest = max(slowest, seconds)

        with clock.jump(), ThreadPoolExecutor(9) as pool:
            list(pool.map(send, range(8)))
            keep_connection(server, seen)
        elapsed = time.monotonic() - begin
        seen.update({f"jumps: {answer}": count for answer, count in counts.items()})
        read_metrics(server, elapsed, seen)
        for line in server.log.splitlines():
            seen["negative duration in the log"] += bool(re.search(r"(seconds|_s|_ms)=-", line))
        server.process.send_signal(signal.SIGTERM)
        seen[f"jumps: exit code {server.process.wait(60)}"] += 1
    print(f"jumps, {workers} HTTP workers: {dict(counts)}, the slowest after {slowest:.2f} s", file=sys.stderr)


def keep_connection(server: AttackedServer, seen: Counter[str]) -> None:
    """Requests over one connection, with pauses in which the clock jumps."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with closing(connection):
        connection.connect()
        first = connection.sock
        for _ in range(8):
            connection.request("POST", "/embed", IMAGE, {"X-API-Key": "two"})
            answer = connection.getresponse()
            answer.read()
            seen[f"kept connection: {answer.status if connection.sock is first else 'closed'}"] += 1
            time.sleep(2 * JUMP_S)


def read_metrics(server: AttackedServer, elapsed: float, seen: Counter[str]) -> None:
    """No sum of seconds is negative, or larger than what all clients together can have waited."""
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    for name, value in re.findall(r"^(mae_\w+_seconds_(?:sum|bucket))\S* (\S+)$", text, re.M):
        seconds = float(value)
        seen["metrics: sums and buckets"] += 1
        seen[f"metrics: {name} negative"] += seconds < 0
        seen[f"metrics: {name} too large"] += name.endswith("_sum") and seconds > 10 * elapsed
    seen["metrics: slow batches"] += int(server.metric("mae_slow_batches_total"))


def attack_rate(clock: Clock, seen: Counter[str]) -> None:
    """A key's rate stays what it is, and Retry-After tells true seconds."""
    settings = {"api_keys": "one,two", "key_images_per_s": RATE, "max_images": BURST}
    with serve(fake=clock.environment, **settings) as server, clock.jump():
        begin, passed = time.monotonic(), 0
        while time.monotonic() - begin < LOAD_S:
            status, _, headers = ask(server)
            passed += status == "200"
            if status.startswith("429") and headers.get("retry-after") != "1":
                seen[f"rate: Retry-After {headers.get('retry-after')}"] += 1
            time.sleep(0.005)
        allowed = BURST + RATE * (time.monotonic() - begin) + 1
    print(f"rate: {passed} passed, {allowed:.0f} allowed", file=sys.stderr)
    seen["rate: kept" if 0.6 * allowed < passed <= allowed else f"rate: {passed} where {allowed:.0f} may pass"] += 1


def attack_deadlines(clock: Clock, seen: Counter[str]) -> None:
    """A batch within its time, one that overruns the time of its request, and one that hangs."""
    hangs = {"FAKE_HANG_LEAST_S": str(LIMIT_S)}
    with serve(fake=clock.environment | hangs | {"FAKE_S": "2"}) as server, clock.jump():
        seen[f"batch of 2 s: {ask(server)[0]}"] += 1
    with serve(fake=clock.environment | {"FAKE_S": "8"}, request_timeout_s=4) as server, clock.jump():
        status, seconds, _ = ask(server)
        seen[f"batch of 8 s, with 4 s of time: {status}{'' if 3.5 < seconds < 7 else f' after {seconds:.1f} s'}"] += 1
    with serve(fake=clock.environment | hangs | {"FAKE": "hangs"}) as server, clock.jump():
        seen[f"batch that hangs: {ask(server, POISON)[0]}"] += 1
        seen[f"batch that hangs: exit code {server.process.wait(60)}"] += 1


def attack_suspension(workers: int, seen: Counter[str]) -> None:
    """All processes are stopped under load for longer than any of them may be silent."""
    settings = {"http_workers": workers, "request_timeout_s": 120}
    counts: Counter[str] = Counter()
    ended = threading.Event()
    with serve(fake={"FAKE_HANG_LEAST_S": str(LIMIT_S), "FAKE_S": "0.05"}, **settings) as server:

        def send(number: int) -> None:
            while not ended.is_set():
                counts[ask(server, number)[0]] += 1

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(send, number) for number in range(8)]
            try:
                time.sleep(3)
                members = list(family(server.process.pid))
                for number in (signal.SIGSTOP, signal.SIGCONT):
                    for pid in members:
                        os.kill(pid, number)
                    time.sleep(STOP_S if number == signal.SIGSTOP else 5)
            finally:
                ended.set()
            for client in clients:
                client.result()
        seen.update({f"suspended: {answer}": count for answer, count in counts.items()})
        seen["suspended: a process was replaced"] += list(family(server.process.pid)) != members
        seen[f"suspended: /livez {httpx.get(f'{server.url}/livez', timeout=30).status_code}"] += 1
        seen["suspended: slow batches"] += int(server.metric("mae_slow_batches_total"))


EXPECTED = {
    "false clocks: not tried, for want of gcc",
    *(f"{name}: 200" for name in OFFSETS),
    "log: times of the clock",
    "time zone: 200",
    "jumps: 200",
    "jumps: exit code 0",
    "kept connection: 200",
    "metrics: sums and buckets",
    "rate: kept",
    "batch of 2 s: 200",
    "batch of 8 s, with 4 s of time: 504 deadline_passed",
    "batch that hangs: 503 engine_lost",
    "batch that hangs: exit code 1",
    "suspended: 200",
    "suspended: /livez 200",
    "suspended: slow batches",
}


def main() -> int:
    """Attacks; returns the exit code of `report`."""
    end_after(minutes=30)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"by default all: {' '.join(PARTS)}")
    parts = parser.parse_args().parts
    seen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="mae-clock-") as name:
        try:
            clock = Clock(Path(name))
        except FileNotFoundError:
            seen["false clocks: not tried, for want of gcc"] += 1
        else:
            if "offsets" in parts:
                attack_offsets(clock, seen)
            for workers in (0, 2) if "load" in parts else ():
                attack_load(clock, workers, seen)
            if "rate" in parts:
                attack_rate(clock, seen)
            if "deadlines" in parts:
                attack_deadlines(clock, seen)
        if "zones" in parts:
            attack_zones(seen)
        for workers in (0, 2) if "suspension" in parts else ():
            attack_suspension(workers, seen)
    return report("clocks", seen, EXPECTED)


if __name__ == "__main__":
    sys.exit(main())
