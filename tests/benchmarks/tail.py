"""Measures the tail at half of capacity, for two revisions or settings in turns, with a simulation beside it.

    .venv/bin/python -m tests.benchmarks.tail main . --minutes 3 --runs 5
    .venv/bin/python -m tests.benchmarks.tail . . --setting-b JOINED_LANE=off --route /embed

A revision is anything that git knows, or `.` for this checkout. Both servers run all the time; the load goes to one and
the other in turns: A B, B A, … For each route the capacity is that of A with 32 connections, and both get requests at
random times at half of it. Before each run, one connection sends one request at a time: its p50 is what the percentiles
are divided by. The first quarter of a run is not measured, and --minutes are those that are.

The simulation (`tests.benchmarks.batching`) has the seconds of the engine and of decoding as this checkout's
`mae bench --parts engine,decode` measures them, before the servers start, and those of the joined lane as /info of B
tells them. It has neither HTTP nor an event loop, and half of its own capacity as its load. The last line, if B
measures its batches, has their seconds by B, the load of the servers, and decoding that takes all of B's CPU time per
request but that of the engine. Needs wrk, Linux, and a machine that has nothing else to do.

"core-ms" is the server's CPU time per request, and "waited" the time per request in which its threads could run but had
no core, as the kernel counts it.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from model.engines.batch_seconds import BatchSeconds
from service.benchmark import load
from service.benchmark.processes import ServerProcess, environment_of
from service.benchmark.samples import generate_sample
from service.settings import load_settings
from tests.benchmarks.batching import RULES, Host, Simulation, open_times
from tests.benchmarks.compare import check_out, run_revision, setting

ROUTES = ("/embed", "/reconstruct")
OPERATIONS = {"/embed": ("embed", "embed whole", 1.0), "/reconstruct": ("reconstruct", "reconstruct quarter", 0.25)}
"""The operation, the shape and the share of visible patches of each route."""
SATURATING = 32
SHORT_S = 8
"""Seconds of a run with one connection, and of one that measures the capacity."""
SETTLE_S = 20
"""Seconds after the start in which the servers may measure their batches."""
SIMULATED = 40_000


class Run(NamedTuple):
    """One run of one server: milliseconds."""

    lone_p50: float
    p50: float
    p95: float
    p99: float
    images_per_s: float
    images_per_batch: float
    core_ms: float
    waited_ms: float

    def ratios(self) -> tuple[float, float, float]:
        """The percentiles over a lone request."""
        return self.p50 / self.lone_p50, self.p95 / self.lone_p50, self.p99 / self.lone_p50


def measure(server: ServerProcess, route: load.Route, rate: float, minutes: float) -> Run:
    """A lone client, and then requests at random times.

    Raises:
        SystemExit: a request failed.
    """
    lone = load.send_closed_load(server, route, 1, SHORT_S)
    seconds, waited_s = round(60 * minutes / load.STEADY_SHARE), waited_seconds(server)
    figures = load.send_open_load(server, route, rate, seconds)
    waited_ms = 1000 * (waited_seconds(server) - waited_s) / (seconds * figures.images_per_s)
    for one in (lone, figures):
        if one.failed or one.p50_ms is None:
            sys.exit(f"{route.name}: {one.failed} requests failed, {one.answered} were answered")
    percentiles = (figures.p50_ms or 0.0, figures.p95_ms or 0.0, figures.p99_ms or 0.0)
    costs = (figures.images_per_batch or 0.0, figures.core_ms or 0.0, waited_ms)
    return Run(lone.p50_ms or 0.0, *percentiles, figures.images_per_s, *costs)


def waited_seconds(server: ServerProcess) -> float:
    """Seconds in which threads of the server could run but had no core (the second number of /proc/…/schedstat)."""
    threads = Path(f"/proc/{server.pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[1]) for thread in threads) / 1e9


def measure_stages() -> dict[str, Any]:
    """The figures of the engine and of decoding, from `mae bench` of this checkout."""
    command = [sys.executable, "-P", "-c", "from service.cli.main import main; main()"]
    command += ["bench", "--parts", "engine,decode", "--seconds", "0.5", "--json", "-"]
    done = subprocess.run(command, env=environment_of(load_settings()), check=True, stdout=subprocess.PIPE)
    [figures] = json.loads(done.stdout)["benchmarks"]
    return dict(figures)


def host_of(route: str, stages: dict[str, Any], joined: dict[int, float]) -> Host:
    """The machine of a simulation, with the measured seconds."""
    operation, _, share = OPERATIONS[route]
    info = stages["engine"]
    visible = round(share * (info["config"]["image_size"] // info["config"]["patch_size"]) ** 2)
    rows = [row for row in stages["figures"] if (row["operation"], row["visible"]) == (operation, visible)]
    seconds = {(row["lanes"], row["batch"]): row["p50_ms"] / 1000 for row in rows}
    lanes = info["lanes"]
    decode = next(cost for cost in stages["service"]["stages"] if cost["stage"] == "decode")
    of_lanes = {batch: s for (count, batch), s in sorted(seconds.items()) if count == lanes}
    shape = BatchSeconds(lone=seconds[1, 1], lanes=of_lanes, joined=joined)
    return Host(shape, lanes, max(of_lanes), decode["core_ms"] / 1000, decode["threads"])


def simulate(host: Host, rule: str, rate: float | None = None) -> tuple[Run, float]:
    """The same two loads in virtual time, at half of capacity if no rate is given, and the capacity in images per s."""
    capacity = Simulation(host, RULES[rule]).run([0.0] * 2000, SATURATING).images_per_s
    lone = Simulation(host, RULES[rule]).run([0.0] * 100, 1).percentiles()[0]
    outcome = Simulation(host, RULES[rule]).run(open_times(rate or capacity / 2, SIMULATED))
    p50, p95, p99 = (1000 * value for value in outcome.percentiles())
    return Run(1000 * lone, p50, p95, p99, outcome.images_per_s, outcome.mean_size, math.nan, math.nan), capacity


def read_seconds(server: ServerProcess, route: str) -> BatchSeconds | None:
    """The seconds of batches that the server plans by; None if it has not measured any."""
    with urllib.request.urlopen(f"{server.url}/info", timeout=10) as answer:
        engine = json.load(answer)["engine"]
    if not engine.get("batch_curves"):
        return None
    return BatchSeconds.model_validate(engine["batch_curves"]["shapes"][OPERATIONS[route][1]])


def row(name: str, runs: Sequence[Run]) -> str:
    """A line with the medians of the runs."""
    lone, p50, p95, p99, *others = (median(run[index] for run in runs) for index in range(len(Run._fields)))
    rate, batch, core_ms, waited_ms = others
    ratios = "".join(f"{median(run.ratios()[index] for run in runs):7.2f}" for index in range(3))
    percentiles = f"{name:30}{lone:9.1f}{p50:9.1f}{p95:9.1f}{p99:9.1f}"
    return f"{percentiles}{ratios}{rate:9.1f}{batch:8.2f}{core_ms:9.1f}{waited_ms:8.1f}"


def compare(a: Sequence[Run], b: Sequence[Run]) -> str:
    """Medians over the pairs of runs: b over a, and the percentiles of b over the lone request of a."""
    names = ("lone p50", "p50", "p95", "p99")
    ratios = [median(two[index] / one[index] for one, two in zip(a, b, strict=True)) for index in range(len(names))]
    of_lone = [median(two[index] / one.lone_p50 for one, two in zip(a, b, strict=True)) for index in (1, 2, 3)]
    over_a = ", ".join(f"{name} {ratio:.3f}" for name, ratio in zip(names, ratios, strict=True))
    return f"b over a: {over_a}; b over the lone p50 of a: " + ", ".join(f"{ratio:.2f}" for ratio in of_lone)


HEAD = (
    f"{'':30}{'lone p50':>9}{'p50':>9}{'p95':>9}{'p99':>9}{'over lone p50':>21}"
    f"{'images/s':>9}{'/batch':>8}{'core-ms':>9}{'waited':>8}"
)


def main() -> None:
    """Measures both servers in turns, and prints a table for each route."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", help="the revision to compare with")
    parser.add_argument("b", help="the revision to measure")
    parser.add_argument("--route", choices=ROUTES, action="append", help="both if none is given")
    parser.add_argument("--minutes", type=float, default=3, help="measured minutes of a run")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs, one of each revision")
    parser.add_argument("--setting-a", type=setting, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--setting-b", type=setting, action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    if not load.wrk_is_installed():
        sys.exit(load.WRK_MISSING)
    if not (1 <= options.runs <= 20 and 0 < options.minutes <= 10):
        sys.exit("--runs is 1 to 20, --minutes more than 0 and at most 10")
    names = options.route or ROUTES
    run_s = SHORT_S + 60 * options.minutes / load.STEADY_SHARE
    minutes = (2 * len(names) * (options.runs * run_s + SHORT_S) + SETTLE_S) / 60
    print(f"about {minutes:.0f} minutes, and those of the simulation", file=sys.stderr)
    stages = measure_stages()
    files = generate_sample("JPEG", 500, 334, 8).files
    routes = {route.name: route for route in load.routes_of(files, True)}
    with ExitStack() as stack:
        checkouts = [stack.enter_context(check_out(revision)) for revision in (options.a, options.b)]
        settings: tuple[dict[str, Any], ...] = (dict(options.setting_a), dict(options.setting_b))
        servers = [
            stack.enter_context(run_revision(checkout, False, {"header_timeout_s": load.IDLE_S, **own}))
            for checkout, own in zip(checkouts, settings, strict=True)
        ]
        time.sleep(SETTLE_S)
        for name in names:
            route = routes[name]
            capacities = [load.send_closed_load(server, route, SATURATING, SHORT_S) for server in servers]
            rate = capacities[0].images_per_s / 2
            rates = " and ".join(f"{figures.images_per_s:.1f}" for figures in capacities)
            print(f"\n{name}: {rates} images/s with {SATURATING} connections; requests at {rate:.1f}/s")
            planned = read_seconds(servers[1], name)
            print(f"b plans by {planned}\n{HEAD}", flush=True)
            runs: tuple[list[Run], list[Run]] = ([], [])
            for number in range(options.runs):
                for side in (0, 1) if number % 2 == 0 else (1, 0):
                    runs[side].append(measure(servers[side], route, rate, options.minutes))
                    print(row(f"{'ab'[side]} {number + 1}", runs[side][-1:]), flush=True)
            print(row(f"a: {options.a[:16]}, medians", runs[0]))
            print(row(f"b: {options.b[:16]}, medians", runs[1]))
            print(compare(*runs))
            joined = planned.joined if planned is not None else {}
            host = host_of(name, stages, {})
            joined_host = host_of(name, stages, joined)
            simulations = {
                "greedy": simulate(host, "greedy"),
                "measured": simulate(host, "measured"),
                "measured, joined": simulate(joined_host, "measured"),
            }
            if planned is not None:
                other_s = median(run.core_ms for run in runs[1]) / 1000 - planned.lanes[1]
                busy_host = replace(joined_host, seconds=planned, decode_s=max(other_s, 0.0))
                simulations["all CPU time"] = simulate(busy_host, "measured", rate)
            for label, (simulated, capacity) in simulations.items():
                print(f"{row(f'simulated, {label}', [simulated])}   capacity {capacity:.1f} images/s", flush=True)


if __name__ == "__main__":
    main()
