"""Measures all parts of the service, one after the other, in a time that is known beforehand."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.benchmark.timing import Figures, sizes_of
from model.engines.base import Engine, EngineInfo
from model.engines.cpu import available_cpus, cpu_name
from service.benchmark import load
from service.benchmark.limit import limits_of
from service.benchmark.processes import ServerProcess, serve_model, serve_null_engine
from service.benchmark.results import LoadFigures, Machine, ServerFigures, ServiceBenchmark, StageCost
from service.benchmark.samples import Sample
from service.benchmark.stages import measure_answers, measure_decoding
from service.settings import Settings

Part = Literal["engine", "decode", "answers", "front", "service"]
PARTS: tuple[Part, ...] = ("engine", "decode", "answers", "front", "service")
SERVER_PARTS: frozenset[Part] = frozenset({"front", "service"})
"""The parts that run a server under load, for which wrk is needed."""
CONNECTIONS = (1, 4, 16, 64, 256)
"""The numbers of connections to the whole service, unless the user names others."""
FRONT_CONNECTIONS = (1, 16, 64)
"""The numbers of connections to the front end alone."""
SHARES_OF_BEST = (0.5, 0.8)
"""The rates of open arrivals, as shares of the best throughput with closed arrivals."""
START_S = 10.0
"""Seconds that a server with a built engine may take to start."""
ANSWER_KINDS = 6
"""Number of kinds of answers that `measure_answers` writes."""


@dataclass(frozen=True)
class BenchmarkPlan:
    """The parts to measure, and for how long."""

    parts: frozenset[Part]
    seconds: float
    """Seconds for each figure of the engine and of the stages."""
    load_seconds: float
    """Least seconds that are measured under each load."""
    connections: tuple[int, ...] = CONNECTIONS

    def covers_limit(self) -> bool:
        """Whether the plan has all parts that the limit is computed from."""
        return self.parts == frozenset(PARTS)

    def duration(self, engine: Engine, samples: int, routes: int) -> tuple[float, float]:
        """The shortest and the longest time in seconds that all parts take, without baselines.

        Args:
            engine: the engine that is measured.
            samples: the number of samples to decode.
            routes: the number of routes under load.
        """
        stages = 0.0
        if "engine" in self.parts:
            stages += len(sizes_of(engine)) * self.seconds
        stages += self.seconds * (samples * ("decode" in self.parts) + ANSWER_KINDS * ("answers" in self.parts))
        closed_runs = routes * len(FRONT_CONNECTIONS) * ("front" in self.parts)
        closed_runs += routes * len(self.connections) * ("service" in self.parts)
        open_runs = routes * len(SHARES_OF_BEST) * ("service" in self.parts)
        open_seconds = open_runs * load.open_run_seconds(self.load_seconds)
        shortest_run = load.run_seconds(self.load_seconds, 1, None) or load.MAX_SECONDS
        starts = START_S * len(self.parts & SERVER_PARTS)
        return (
            stages + closed_runs * shortest_run + open_seconds,
            stages + closed_runs * load.MAX_SECONDS + open_seconds + starts,
        )


def benchmark_service(
    info: EngineInfo,
    engine: Sequence[Figures],
    settings: Settings,
    plan: BenchmarkPlan,
    samples: Sequence[Sample],
    progress: Callable[[str], None] = lambda step: None,
) -> ServiceBenchmark:
    """Measures all parts of `plan` but the engine.

    Args:
        info: describes the engine that serves.
        engine: figures of the engine alone; empty if it was not measured.
        settings: the settings of the servers.
        plan: the parts to measure, and for how long.
        samples: images; those of the first sample are sent to the servers.
        progress: called with a description of each step.

    Raises:
        ServerFailed: a server does not become ready.
        LoadFailed: the load cannot be sent.
    """
    load_before = os.getloadavg()[0]
    sample = samples[0]
    stages: list[StageCost] = []
    if "decode" in plan.parts:
        progress("decoding images")
        stages += measure_decoding(info, samples, settings.max_pixels, settings.decode_threads, plan.seconds)
    if "answers" in plan.parts:
        progress("writing answers")
        stages += measure_answers(info, settings.decode_threads, plan.seconds)
    routes = load.routes_of(sample.files, info.config.has_decoder)
    front = service = None
    if "front" in plan.parts:
        with _write_info(info) as file, serve_null_engine(settings, file) as server:
            front = measure_under_load(
                server, routes, FRONT_CONNECTIONS, (), plan.load_seconds, progress, "front end alone"
            )
    if "service" in plan.parts:
        with serve_model(settings.model_copy(update={"header_timeout_s": load.IDLE_S})) as server:
            service = measure_under_load(
                server, routes, plan.connections, SHARES_OF_BEST, plan.load_seconds, progress, "service"
            )
    cores = available_cpus()
    limits = []
    without_limit: str | None = "the limit is computed from all parts: --parts all"
    if plan.covers_limit() and front and service:
        on_accelerator = info.device.startswith("cuda")
        limits = limits_of(engine, stages, front, service, sample.name, cores, on_accelerator)
        without_limit = None if limits else "the CPU time of processes is read from /proc, which this system lacks"
    return ServiceBenchmark(
        machine=Machine(processor=cpu_name(), cores=cores, load_before=load_before, load_after=os.getloadavg()[0]),
        sample=sample.name,
        sample_kilobytes=sample.mean_bytes / 1000,
        stages=tuple(stages),
        front=front,
        service=service,
        limits=tuple(limits),
        without_limit=without_limit,
    )


def measure_under_load(
    server: ServerProcess,
    routes: Sequence[load.Route],
    connections: Sequence[int],
    shares: Sequence[float],
    window_s: float,
    progress: Callable[[str], None],
    name: str,
) -> ServerFigures:
    """Measures each route with closed arrivals from more and more connections, then with open arrivals.

    Args:
        server: the server to send to.
        routes: the requests to send.
        connections: the numbers of connections of the closed loads, ascending.
        shares: the rates of the open loads, as shares of the best closed throughput.
        window_s: seconds to measure under each load, at least.
        progress: called with a description of each step.
        name: the server's name in those descriptions.
    """
    figures: list[LoadFigures] = []
    left_out = {}
    for route in routes:
        best = 0.0
        for count in connections:
            progress(f"{name}: {route.name}, {count} connections")
            seconds = load.run_seconds(window_s, count, best or None)
            if seconds is None:
                wait = count / best if best else float("inf")
                left_out[f"{route.name}, {count} connections"] = (
                    f"at {best:.3g} images/s each would wait {wait:.0f} s for an answer: no steady load "
                    f"within {load.MAX_SECONDS:.0f} s"
                )
                continue
            figures.append(load.send_closed_load(server, route, count, seconds))
            best = max(best, figures[-1].images_per_s)
        for share in shares if best else ():
            progress(f"{name}: {route.name}, {share:.0%} of its best throughput")
            figures.append(load.send_open_load(server, route, share * best, load.open_run_seconds(window_s)))
    return ServerFigures(figures=tuple(figures), left_out=left_out)


@contextmanager
def _write_info(info: EngineInfo) -> Iterator[Path]:
    """A temporary JSON file that describes the engine."""
    with tempfile.TemporaryDirectory(prefix="mae-bench-") as folder:
        path = Path(folder) / "info.json"
        path.write_text(info.model_dump_json())
        yield path
