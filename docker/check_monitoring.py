"""Checks the dashboard and the rules against a real service and a real Prometheus: every query must have data.

    .venv/bin/python docker/check_monitoring.py      # needs `prometheus` (Debian's package, or --prometheus PATH)

Starts `mae serve` on the packaged model and Prometheus with docker/prometheus, on free ports of 127.0.0.1. Sends good
requests and all kinds of refused ones for a minute, and sends Prometheus the queries of every panel. A query without
data fails the check, as does a rule that cannot be evaluated. An exporter replaces the metrics of a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from prometheus_client import CollectorRegistry, Gauge, start_http_server

DOCKER = Path(__file__).parent
SCRAPE_S = 10
# Grafana's value of $__rate_interval is four scrapes.
VARIABLES = {"$__rate_interval": f"{4 * SCRAPE_S}s", "$instance": ".*"}
# The names and labels of service/gpu_metrics.py.
GPU = {
    "mae_gpu_memory_used_bytes": 61e9,
    "mae_gpu_memory_total_bytes": 80e9,
    "mae_gpu_utilization_ratio": 0.87,
    "mae_gpu_power_watts": 412.0,
    "mae_gpu_temperature_celsius": 61.0,
}
SETTINGS = ["--queue-images", "24", "--max-body-mb", "1", "--max-images", "20", "--drift-sample", "1"]
CODES = {"200", "400", "404", "413", "415", "422", "429", "499"}


@dataclass
class Query:
    """One query of a panel."""

    panel: str
    expr: str

    @property
    def concrete(self) -> str:
        """The query with values instead of Grafana's variables."""
        expr = self.expr
        for name, value in VARIABLES.items():
            expr = expr.replace(name, value)
        return expr


def queries(dashboard: dict[str, Any]) -> list[Query]:
    """Every query of every panel, in the order of the page."""
    return [
        Query(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]


def free_port() -> int:
    """A port of 127.0.0.1 that no program uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def run_until_left(command: list[str], log: Path, ready: str, seconds: float = 120) -> Iterator[None]:
    """Runs a process until the block is left; the block begins when the URL `ready` answers 200."""
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            end = time.monotonic() + seconds
            while not is_ready(ready):
                if process.poll() is not None or time.monotonic() > end:
                    sys.exit(f"{command[0]} is not ready:\n{log.read_text()}")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()


def is_ready(url: str) -> bool:
    """Whether the URL answers 200."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url).status_code == 200
    return False


def write_configuration(folder: Path, service: int, gpu: int, prometheus: int) -> Path:
    """Writes the project's configuration of Prometheus with other ports as targets."""
    shutil.copy(DOCKER / "prometheus" / "rules.yml", folder)
    text = (DOCKER / "prometheus" / "prometheus.yml").read_text()
    for old, new in {
        '"mae-serve:8000"': f'"127.0.0.1:{service}", "127.0.0.1:{gpu}"',
        '"localhost:9090"': f'"127.0.0.1:{prometheus}"',
        "scrape_interval: 10s": f"scrape_interval: {SCRAPE_S}s",
    }.items():
        if text.count(old) != 1:
            sys.exit(f"prometheus.yml should have {old} once")
        text = text.replace(old, new)
    path = folder / "prometheus.yml"
    path.write_text(text)
    return path


def export_gpu_metrics(port: int) -> None:
    """Exports the metrics of a GPU until this process ends."""
    registry = CollectorRegistry()
    for name, value in GPU.items():
        Gauge(name, "replaces a GPU", ["gpu"], registry=registry).labels("0").set(value)
    start_http_server(port, "127.0.0.1", registry)


def jpeg(side: int, seed: int) -> bytes:
    """A picture of blurred noise."""
    noise = Image.frombytes("RGB", (16, 16), random.Random(seed).randbytes(768)).resize((side, side))
    out = io.BytesIO()
    noise.save(out, "JPEG")
    return out.getvalue()


def send_load(url: str, seconds: float) -> Counter[int]:
    """Sends good, refused and abandoned requests in rounds for `seconds`; counts the answers by status."""
    small, large = jpeg(256, 1), jpeg(1000, 2)
    many = [("images", (f"{n}.jpg", large, "image/jpeg")) for n in range(12)]  # half of --queue-images
    image = {"content-type": "image/jpeg"}
    good: list[tuple[str, dict[str, Any]]] = [
        ("/embed", {"content": small, "headers": image}),
        ("/embed?keep=0.25", {"content": large, "headers": image}),
        ("/embed?pool=tokens", {"content": small, "headers": image}),
        ("/reconstruct?seed=1", {"content": small, "headers": image}),
        ("/reconstruct?mask_ratio=0.5&view=panel", {"content": large, "headers": image}),
        ("/v2/models/embed/infer", {"content": small, "headers": {"inference-header-content-length": "0"}}),
    ]
    refused: list[tuple[str, dict[str, Any]]] = [
        ("/embed", {"content": b"no image", "headers": image}),
        ("/classify", {"content": small, "headers": image}),
        ("/embed", {"content": bytes(1_500_000), "headers": image}),
        ("/embed", {"content": b"text", "headers": {"content-type": "text/plain"}}),
        ("/reconstruct?mask_ratio=7", {"content": small, "headers": image}),
    ]
    burst: list[tuple[str, dict[str, Any]]] = [("/embed", {"files": many})] * 4
    abandoned: tuple[str, dict[str, Any]] = ("/embed", {"files": many, "timeout": httpx.Timeout(5, read=0.01)})
    statuses: Counter[int] = Counter()

    def send(request: tuple[str, dict[str, Any]]) -> None:
        path, options = request
        try:
            statuses[client.post(url + path, **options).status_code] += 1
        except httpx.ReadTimeout:
            statuses[499] += 1

    end = time.monotonic() + seconds
    with httpx.Client(timeout=30) as client, ThreadPoolExecutor(16) as pool:
        while time.monotonic() < end:
            list(pool.map(send, [*good, *refused, *burst]))
            send(abandoned)  # alone: a full queue would refuse it before the client disconnects
            time.sleep(0.1)
    return statuses


class Prometheus:
    """The HTTP API of Prometheus."""

    def __init__(self, url: str, start: float) -> None:
        """Uses the API at `url`; ranges begin at the time `start`."""
        self._url, self._start = url, start

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer; an error ends the check with exit code 1."""
        answer = httpx.get(self._url + path, params=parameters).json()
        if answer["status"] != "success":
            sys.exit(f"{path} {parameters}: {answer['error']}")
        return answer["data"]

    def series(self, expr: str) -> list[float]:
        """The largest finite number of each series since the start; series without any are left out."""
        data = self.get("/api/v1/query_range", query=expr, start=str(self._start), end=str(time.time()), step="10")
        numbers = [[float(value) for _, value in series["values"]] for series in data["result"]]
        return [max(finite) for values in numbers if (finite := [value for value in values if math.isfinite(value)])]


def check(prometheus: Prometheus, dashboard: dict[str, Any]) -> list[str]:
    """Prints a table of all queries; returns a sentence for each problem."""
    problems = []
    panel_queries = queries(dashboard)
    width = max(len(query.panel) for query in panel_queries)
    print(f"\n{'panel':{width}}  series  {'largest':>11}  query")
    for query in panel_queries:
        values = prometheus.series(query.concrete)
        largest = f"{max(values):.4g}" if values else "-"
        print(f"{query.panel:{width}}  {len(values):6}  {largest:>11}  {query.expr}")
        if not values:
            problems.append(f"no data for {query.panel}: {query.expr}")
    for annotation in dashboard["annotations"]["list"]:
        count = len(prometheus.series(Query("", annotation["expr"]).concrete))
        print(f"annotation {annotation['name']}: {count} series")  # annotations are rare, so there may be none
    if not prometheus.get("/api/v1/label/instance/values", **{"match[]": "mae_ready"}):
        problems.append("the variable instance has no values")

    codes = {
        series["metric"]["code"] for series in prometheus.get("/api/v1/query", query="mae_requests_total")["result"]
    }
    if missing := CODES - codes:
        problems.append(f"no request was answered with status {', '.join(sorted(missing))}")
    for target in prometheus.get("/api/v1/targets")["activeTargets"]:
        if target["health"] != "up":
            problems.append(f"{target['scrapeUrl']} is {target['health']}: {target['lastError']}")
    rules = [rule for group in prometheus.get("/api/v1/rules")["groups"] for rule in group["rules"]]
    problems += [f"rule {rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"]
    alerts = [
        f"{alert['labels']['alertname']} ({alert['state']})" for alert in prometheus.get("/api/v1/alerts")["alerts"]
    ]
    print(f"{len(rules)} rules evaluated; alerts: {', '.join(alerts) or 'none'}")
    return problems


def main() -> None:
    """Runs the check; prints its problems and exits with 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="duration of the load")
    parser.add_argument("--prometheus", default="prometheus", help="the program to run")
    options = parser.parse_args()
    service, gpu, port = free_port(), free_port(), free_port()
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "mae-serve.json").read_text())
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        config = write_configuration(folder, service, gpu, port)
        export_gpu_metrics(gpu)
        mae = [str(Path(sys.executable).with_name("mae")), "serve", "--host", "127.0.0.1", "--port", str(service)]
        mae += ["--engine-cache", str(folder / "engines"), *SETTINGS]
        started = time.monotonic()
        stack.enter_context(run_until_left(mae, folder / "mae.log", f"http://127.0.0.1:{service}/readyz"))
        print(f"mae serve is ready after {time.monotonic() - started:.1f} s, with an empty engine cache")
        command = [options.prometheus, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
        command.append(f"--web.listen-address=127.0.0.1:{port}")
        stack.enter_context(run_until_left(command, folder / "prometheus.log", f"http://127.0.0.1:{port}/-/ready"))
        start = time.time()
        statuses = send_load(f"http://127.0.0.1:{service}", options.seconds)
        print(f"{options.seconds:g} s of load: {dict(sorted(statuses.items()))}")
        print(f"An exporter replaces {', '.join(GPU)}.")
        time.sleep(SCRAPE_S + 2)  # so that the end of the load is scraped
        problems = check(Prometheus(f"http://127.0.0.1:{port}", start), dashboard)
    if problems:
        sys.exit("\n".join(problems))
    print("Every query has data.")


if __name__ == "__main__":
    main()
