"""Measures how soon the server is ready, and whether its memory grows over many requests with mixed mask ratios.

    .venv/bin/python -m tests.benchmarks.memory --requests 20000

First every number of visible patches comes eight times for /embed and for /reconstruct, so that two lanes have most
likely compiled code for each: a process that grows later does not only reach its working set. Then half of the requests
are /embed and half /reconstruct, each with a random share of visible patches. Settings come from the environment
(MAE_…); Linux only.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import random
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from service.benchmark.processes import ServerProcess, serve_model
from service.benchmark.samples import generate_sample
from service.settings import load_settings

CLIENTS = 12
PATCHES, ROUNDS = 196, 8
"""Patches of an image of the packaged model; rounds over all numbers of visible ones."""
WARM_UP = 2 * ROUNDS * (PATCHES - 1)
"""Requests before the first line."""


def resident_mb(server: ServerProcess) -> float:
    """The resident memory of the server in megabytes."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1000


def path_of(number: int) -> str:
    """The path and query of the request with that number, the same in every run; those of the warm-up are negative."""
    if number < 0:
        share = (1 + -number // 2 % (PATCHES - 1) + 0.5) / PATCHES
    else:
        share = random.Random(number).uniform(0.01, 0.99)
    return f"/embed?keep={share:.4f}" if number % 2 else f"/reconstruct?mask_ratio={1 - share:.4f}"


def main() -> None:
    """Prints a line after the warm-up, after 1,000 requests, and after each fifth of all requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000, help="0 measures only the time until it is ready")
    options = parser.parse_args()
    files = generate_sample("JPEG", 500, 334, 8).files
    marks = sorted({0, 1000, *(options.requests * fifth // 5 for fifth in range(1, 6))}) if options.requests else []
    first = 0.0
    started = time.monotonic()
    with serve_model(load_settings()) as server:
        print(f"ready after {time.monotonic() - started:.2f} s: {resident_mb(server):.0f} MB", flush=True)
        numbers = itertools.count(-WARM_UP)
        host = urlsplit(server.url).netloc
        for start, end in itertools.pairwise([-WARM_UP, *marks]):
            interval_start = time.monotonic()
            failures: list[str] = []

            def client(until: int = end, failures: list[str] = failures) -> None:
                connection = http.client.HTTPConnection(host, timeout=120)
                while (number := next(numbers)) < until:
                    connection.request("POST", path_of(number), files[number % len(files)])
                    response = connection.getresponse()
                    response.read()
                    if response.status != 200:
                        failures.append(f"{path_of(number)}: {response.status}")
                connection.close()

            threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            megabytes = resident_mb(server)
            first = first or megabytes
            rate = (end - start) / (time.monotonic() - interval_start)
            print(
                f"{end:6} requests: {megabytes:.0f} MB, {megabytes / first - 1:+.1%} since the first line, "
                f"{rate:.0f}/s, failed: {failures[:3] or None}",
                flush=True,
            )


if __name__ == "__main__":
    main()
