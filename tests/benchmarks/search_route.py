"""Measures what a search adds to an embedding: POST /search beside POST /embed, with the same image and server.

    .venv/bin/python -m tests.benchmarks.search_route photos.lance --seconds 20

The server is `mae serve --index` with the packaged model in float32. Each case is asked over one connection and over
eight, for `--seconds` each. Printed are requests per second, the median time of a request, and the server's CPU time
per request, user and system.
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.benchmarks.protocols import PICTURE, cpu_seconds, wait_for_address

CASES = ("/embed", "/search?k=10", "/search?k=100")


def main() -> None:
    """Starts the server, measures, and ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        settings = {"HOST": "127.0.0.1", "PORT": "0", "PRECISION": "fp32", "INDEX": str(arguments.index)}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAE_")}
        environment |= {f"MAE_{name}": value for name, value in settings.items()}
        with log.open("wb") as out:
            command = [str(Path(sys.executable).with_name("mae")), "serve"]
            server = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        try:
            address = wait_for_address(log)
            for connections in (1, 8):
                for path in CASES:
                    ask(address, path, connections, 2)  # warms up
                    before, start = cpu_seconds(server.pid), time.monotonic()
                    times = ask(address, path, connections, arguments.seconds)
                    cost = 1000 * (cpu_seconds(server.pid) - before) / len(times)
                    rate = len(times) / (time.monotonic() - start)
                    median = 1000 * statistics.median(times)
                    figures = f"{rate:5.1f} requests/s, {median:6.1f} ms, {cost:5.1f} core-ms"
                    print(f"{path:16} {connections} connections: {figures}", flush=True)
        finally:
            server.terminate()
            server.wait()


def ask(address: str, path: str, connections: int, seconds: float) -> list[float]:
    """Seconds of each request, sent for `seconds`, one after the other on each of the connections."""
    body, end = PICTURE.read_bytes(), time.monotonic() + seconds

    def ask_one() -> list[float]:
        connection, times = http.client.HTTPConnection(address, timeout=60), []
        while (start := time.monotonic()) < end:
            connection.request("POST", path, body, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            content = response.read()
            if response.status != 200:
                raise RuntimeError(f"{path}: {response.status} {content!r}")
            times.append(time.monotonic() - start)
        return times

    with ThreadPoolExecutor(connections) as threads:
        return [seconds for one in [threads.submit(ask_one) for _ in range(connections)] for seconds in one.result()]


if __name__ == "__main__":
    main()
