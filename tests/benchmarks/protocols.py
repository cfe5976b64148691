"""Measures what a request costs on the routes of other protocols, beside /embed with the same image in JSON.

    .venv/bin/python -m tests.benchmarks.protocols --rounds 15 --requests 200

The server has the null engine (service/benchmark/null_engine.py), so only the front end computes: web, JSON, base64,
decoding, batching. The figure is CPU time of the server per request, user and system, which other load on the machine
hardly changes. The routes take turns; printed are each route's median over the rounds, and the median of the ratios to
/embed in the same round.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from model.config import PRESETS
from service.benchmark import null_engine
from tests.support.engines import fake_info

PICTURE = Path(__file__).parents[1] / "data" / "chelsea.jpg"


def main() -> None:
    """Starts the server, measures, and ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=200, help="per route and round")
    arguments = parser.parse_args()
    uri = f"data:image/jpeg;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
    cases = {
        "/embed": ("/embed", {"images": [uri]}),
        "/v1/embeddings float": ("/v1/embeddings", {"input": [uri], "encoding_format": "float"}),
        "/v2/embed": ("/v2/embed", {"images": [uri]}),
        "/embed base64": ("/embed?encoding=base64", {"images": [uri]}),
        "/v1/embeddings base64": ("/v1/embeddings", {"input": [uri], "encoding_format": "base64"}),
    }
    requests = {name: (path, json.dumps(body).encode()) for name, (path, body) in cases.items()}
    with tempfile.TemporaryDirectory() as folder:
        info = Path(folder) / "info.json"
        info.write_text(fake_info(PRESETS["mae_tiny"], lanes=2, preferred_batch=4).model_dump_json())
        log = Path(folder) / "log"
        server = start(info, log)
        try:
            connection = http.client.HTTPConnection(wait_for_address(log), timeout=60)
            costs: dict[str, list[float]] = {name: [] for name in requests}
            for _ in range(arguments.rounds):
                for name, request in requests.items():
                    costs[name].append(cost_of(server.pid, connection, *request, arguments.requests))
        finally:
            server.terminate()
            server.wait()
    for name, values in costs.items():
        beside = costs["/embed base64" if name.endswith("base64") else "/embed"]
        ratio = statistics.median(value / other for value, other in zip(values, beside, strict=True))
        print(f"{name:24} {statistics.median(values):.3f} core-ms per request, {ratio:.3f} of /embed")


def start(info: Path, log: Path) -> subprocess.Popen[bytes]:
    """A server of the null engine, on a free port."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAE_")}
    environment |= {"MAE_HOST": "127.0.0.1", "MAE_PORT": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(null_engine.__file__), str(info)]
    with log.open("wb") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out)


def wait_for_address(log: Path) -> str:
    """Host and port, once the server is ready."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if found := re.search(r"running on http://(\S+)", log.read_text()):
            connection = http.client.HTTPConnection(found[1], timeout=60)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return found[1]
        time.sleep(0.1)
    raise TimeoutError(log.read_text())


def cost_of(pid: int, connection: http.client.HTTPConnection, path: str, body: bytes, count: int) -> float:
    """CPU milliseconds of the server per request, of `count` requests one after the other."""
    before = cpu_seconds(pid)
    for _ in range(count):
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {content!r}")
    return 1000 * (cpu_seconds(pid) - before) / count


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process; `stat` would count in steps of ten milliseconds."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


if __name__ == "__main__":
    main()
