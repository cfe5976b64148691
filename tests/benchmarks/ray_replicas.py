"""Measures replicas of Ray Serve: throughput beside `mae serve`, a replica that is killed, and autoscaling.

    MAE_PRECISION=fp32 .venv-cluster/bin/python -m tests.benchmarks.ray_replicas throughput --turns 3
    MAE_PRECISION=fp32 .venv-cluster/bin/python -m tests.benchmarks.ray_replicas killed
    MAE_PRECISION=fp32 .venv-cluster/bin/python -m tests.benchmarks.ray_replicas scaling

`throughput` sends the same load, by wrk, to one replica behind Serve's proxy and to `mae serve`, in turns, and prints
the CPU time of each process per image. `killed` kills one of two replicas under load, and compares each answer with the
one that was given before. `scaling` raises the load and lowers it again, and prints when replicas come and go.
Settings come from the environment. Ray runs on this machine alone, and ends with the script. Linux only.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from typing import Any

import httpx

from service.benchmark import load
from service.benchmark.processes import PROC, ServerProcess, serve_model
from service.benchmark.samples import standard_samples
from service.settings import load_settings

CONNECTIONS = 32
CPUS = 2


class RayServer(ServerProcess):
    """Serve on this machine, whose processes are children of this one."""

    def __init__(self, url: str) -> None:
        super().__init__(None, url)  # type: ignore[arg-type]

    @property
    def alive(self) -> bool:
        return True

    def core_seconds(self) -> float:
        return sum(self.core_seconds_by_name().values())

    def core_seconds_by_name(self) -> Counter[str]:
        """CPU time so far of the replica, the proxy, Serve's controller, and all else of Ray together."""
        seconds: Counter[str] = Counter()
        parents, ticks, names = {}, {}, {}
        for folder in PROC.iterdir():
            if not folder.name.isdigit():
                continue
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                names[int(folder.name)] = (folder / "cmdline").read_text()
            except OSError:  # the process has ended meanwhile
                continue
            parents[int(folder.name)] = int(fields[1])
            ticks[int(folder.name)] = int(fields[11]) + int(fields[12])
        for pid, name in names.items():
            ancestor = pid
            while ancestor in parents and ancestor != os.getpid():
                ancestor = parents[ancestor]
            if ancestor != os.getpid() or pid == os.getpid() or "ray" not in name:
                continue
            kinds = {"ServeReplica": "replica", "ProxyActor": "proxy", "ServeController": "controller"}
            kind = next((kind for part, kind in kinds.items() if part in name), "rest of Ray")
            seconds[kind] += ticks[pid] / os.sysconf("SC_CLK_TCK")
        return seconds


@contextmanager
def serve_on_ray() -> Iterator[RayServer]:
    """Ray and Serve's proxy on this machine."""
    import ray
    from ray import serve

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init("local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield RayServer(f"http://127.0.0.1:{port}")
        serve.shutdown()
    finally:
        ray.shutdown()


def deploy(**options: Any) -> None:
    from ray import serve

    from service.cluster.serve import ReplicaOptions, app

    serve.run(app(ReplicaOptions(**options)), name="mae", route_prefix="/")


def running() -> int:
    from ray import serve

    return int(serve.status().applications["mae"].deployments["Mae"].replica_states.get("RUNNING", 0))


def throughput(options: argparse.Namespace) -> None:
    route = load.routes_of(standard_samples()[0].files, has_decoder=False)[0]
    rates: dict[str, list[float]] = {"mae serve": [], "Ray Serve": []}
    costs: list[Counter[str]] = []
    alone_costs = []
    with serve_on_ray() as ray_server, serve_model(load_settings()) as alone:
        deploy(num_cpus=CPUS, max_replicas=1)
        for server in (alone, ray_server):
            load.send_closed_load(server, route, CONNECTIONS, 2)
        for _ in range(options.turns):
            for name, server in (("mae serve", alone), ("Ray Serve", ray_server)):
                before, start = ray_server.core_seconds_by_name(), alone.core_seconds()
                figures = load.send_closed_load(server, route, CONNECTIONS, options.seconds)
                rates[name].append(figures.images_per_s)
                images = figures.images_per_s * options.seconds
                if server is alone:
                    alone_costs.append(1000 * ((alone.core_seconds() or 0) - (start or 0)) / images)
                else:
                    spent = ray_server.core_seconds_by_name() - before
                    costs.append(Counter({kind: 1000 * seconds / images for kind, seconds in spent.items()}))
                print(f"{name}: {figures.images_per_s:.1f} images/s, p50 {figures.p50_ms:.0f} ms", flush=True)
        times = {}
        for name, server in (("mae serve", alone), ("Ray Serve", ray_server)):
            with httpx.Client(base_url=server.url, timeout=60) as client:
                times[name] = sorted(_seconds(client, route.bodies[0]) for _ in range(60))[30]
    for name, found in rates.items():
        print(f"{name}: {median(found):.1f} images/s; one request at a time {1000 * times[name]:.1f} ms")
    print(f"mae serve: {median(alone_costs):.2f} core-ms per image")
    for kind in sorted({kind for cost in costs for kind in cost}):
        print(f"Ray Serve, {kind}: {median(cost[kind] for cost in costs):.2f} core-ms per image")


def _seconds(client: httpx.Client, body: bytes) -> float:
    start = time.monotonic()
    client.post("/embed", content=body).raise_for_status()
    return time.monotonic() - start


class Senders:
    """Connections that send without a pause; their number may be changed."""

    def __init__(self, url: str, bodies: tuple[bytes, ...]) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            self._right = [client.post("/embed", content=body).json()["embeddings"] for body in bodies]
        self.outcomes: Counter[str] = Counter()
        self.active = 0
        self._url, self._bodies, self._ended = url, bodies, threading.Event()
        self._pool = ThreadPoolExecutor(64)
        for number in range(64):
            self._pool.submit(self._send, number)

    def _send(self, sender: int) -> None:
        number = sender
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._ended.is_set():
                if sender >= self.active:
                    time.sleep(0.05)
                    continue
                number = (number + 1) % len(self._bodies)
                try:
                    answer = client.post("/embed", content=self._bodies[number])
                except httpx.TransportError:
                    self.outcomes["connection closed"] += 1
                    continue
                if answer.status_code != 200:
                    self.outcomes[f"status {answer.status_code}"] += 1
                else:
                    is_right = answer.json()["embeddings"] == self._right[number]
                    self.outcomes["right" if is_right else "wrong"] += 1

    def close(self) -> None:
        self._ended.set()
        self._pool.shutdown()


def killed(options: argparse.Namespace) -> None:
    import ray

    with serve_on_ray() as server:
        deploy(num_cpus=1, min_replicas=2, max_replicas=2)
        senders = Senders(server.url, standard_samples()[0].files)
        try:
            senders.active = 16
            time.sleep(options.seconds)
            named = ray.util.list_named_actors(all_namespaces=True)
            victim = next(actor["name"] for actor in named if actor["name"].startswith("SERVE_REPLICA::mae#Mae#"))
            print(f"before: {dict(senders.outcomes)}", flush=True)
            start = time.monotonic()
            ray.kill(ray.get_actor(victim, "serve"))
            while running() == 2:
                time.sleep(0.05)
            print(f"Serve has seen it after {time.monotonic() - start:.1f} s: {dict(senders.outcomes)}", flush=True)
            while running() < 2:
                time.sleep(0.05)
            print(f"two replicas again after {time.monotonic() - start:.1f} s", flush=True)
            time.sleep(options.seconds)
        finally:
            senders.close()
        print(f"with 16 connections: {dict(senders.outcomes)}")


def scaling(options: argparse.Namespace) -> None:
    with serve_on_ray() as server:
        deploy(
            num_cpus=1, max_replicas=2, target_ongoing_requests=16, upscale_delay_s=5, downscale_delay_s=options.seconds
        )
        senders = Senders(server.url, standard_samples()[0].files)
        start = time.monotonic()
        try:
            for connections, wanted in ((4, 1), (40, 2), (4, 1)):
                senders.active, before, begin = connections, senders.outcomes["right"], time.monotonic()
                print(f"{begin - start:5.1f} s: {connections} connections", flush=True)
                while running() != wanted and time.monotonic() < begin + 120:
                    time.sleep(0.2)
                print(f"{time.monotonic() - start:5.1f} s: {running()} replicas", flush=True)
                time.sleep(options.seconds)
                rate = (senders.outcomes["right"] - before) / (time.monotonic() - begin)
                print(f"{time.monotonic() - start:5.1f} s: {rate:.0f} images/s; {dict(senders.outcomes)}", flush=True)
        finally:
            senders.close()


def main() -> None:
    """Runs one of the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("throughput", "killed", "scaling"))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds of load per turn, or before each step")
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True).stdout.strip()
    print(f"commit {commit}")
    {"throughput": throughput, "killed": killed, "scaling": scaling}[options.part](options)


if __name__ == "__main__":
    main()
