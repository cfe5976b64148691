"""Whether the server's memory stays where it is: resident megabytes after more and more requests with mixed shares.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/memory.py --requests 20000

Half of the requests are /embed, half /reconstruct, each with a share of visible patches of its own, so that batches of
nearly every size and number of patches come up. Settings come from the environment (MAE_…); Linux only.
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

from service.benchmark.processes import ServerProcess, serving
from service.benchmark.samples import made
from service.settings import load_settings

CLIENTS = 12


def resident_mb(server: ServerProcess) -> float:
    """What the server holds in memory."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1000


def path_of(number: int) -> str:
    """Of the request of that number: always the same."""
    draw = random.Random(number)
    share = draw.uniform(0.01, 0.99)
    return f"/embed?keep={share:.4f}" if number % 2 else f"/reconstruct?mask_ratio={share:.4f}"


def main() -> None:
    """Prints a line at 1,000 requests and whenever another fifth of them is answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    given = parser.parse_args()
    files = made("JPEG", 500, 334, 8).files
    marks = sorted({1000, *(given.requests * fifth // 5 for fifth in range(1, 6))})
    first = 0.0
    with serving(load_settings()) as server:
        print(f"ready: {resident_mb(server):.0f} MB", flush=True)
        numbers = itertools.count()
        host = urlsplit(server.url).netloc
        for start, end in itertools.pairwise([0, *marks]):
            began = time.monotonic()
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
            held = resident_mb(server)
            first = first or held
            rate = (end - start) / (time.monotonic() - began)
            print(
                f"{end:6} requests: {held:.0f} MB, {held / first - 1:+.1%} of the first, {rate:.0f}/s, "
                f"failed: {failures[:3] or None}",
                flush=True,
            )


if __name__ == "__main__":
    main()
