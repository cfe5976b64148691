"""All parts of a benchmark of the service, one after the other, within a time that is known beforehand."""

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
from service.benchmark.processes import ServerProcess, serving, serving_nothing
from service.benchmark.results import LoadFigures, Machine, Served, ServiceBenchmark, StageCost
from service.benchmark.samples import Sample, standard
from service.benchmark.stages import answering, decoding
from service.settings import Settings

Part = Literal["engine", "decode", "answers", "front", "service"]
PARTS: tuple[Part, ...] = ("engine", "decode", "answers", "front", "service")
LOADED: frozenset[Part] = frozenset({"front", "service"})
"""Those that need something to send load."""
CONNECTIONS = (1, 4, 16, 64, 256)
FRONT_CONNECTIONS = (1, 16, 64)
SHARES_OF_CAPACITY = (0.5, 0.8)
"""Of what the service did with closed arrivals: how many requests come at random."""
START_S = 10.0
"""What a server with a built engine takes to start, at the most that is usual."""
ENCODERS = 6
"""Answers that are written by themselves."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and how long."""

    parts: frozenset[Part]
    seconds: float
    """For each figure of engine and stages."""
    load_seconds: float
    """The least that is looked at under each load."""
    connections: tuple[int, ...] = CONNECTIONS

    def limits(self) -> bool:
        """Whether all is measured that the limit is worked out from."""
        return self.parts == frozenset(PARTS)

    def duration(self, engine: Engine, samples: int, routes: int) -> tuple[float, float]:
        """Seconds that all parts take, without rivals: if servers are quick, and at the most."""
        least = stages = 0.0
        if "engine" in self.parts:
            stages += len(sizes_of(engine)) * self.seconds
        stages += self.seconds * (samples * ("decode" in self.parts) + ENCODERS * ("answers" in self.parts))
        runs = routes * len(FRONT_CONNECTIONS) * ("front" in self.parts)
        runs += routes * len(self.connections) * ("service" in self.parts)
        opened = routes * len(SHARES_OF_CAPACITY) * ("service" in self.parts)
        starts = START_S * len(self.parts & LOADED)
        quick = load.run_seconds(self.load_seconds, 1, None) or load.MOST_SECONDS
        least = stages + runs * quick + opened * _open_seconds(self.load_seconds)
        most = stages + runs * load.MOST_SECONDS + opened * _open_seconds(self.load_seconds) + starts
        return least, most


def benchmark_service(
    info: EngineInfo,
    engine: Sequence[Figures],
    settings: Settings,
    plan: Plan,
    samples: Sequence[Sample],
    progress: Callable[[str], None] = lambda said: None,
) -> ServiceBenchmark:
    """Measures all parts of `plan` but the engine.

    Args:
        info: of the engine that serves.
        engine: its figures, if it was measured.
        settings: of the servers.
        plan: what to do.
        samples: images; the servers are sent those of the first.
        progress: told in words what is being done.

    Raises:
        ServerFailed, LoadFailed: a server or the load does not work.
    """
    before = os.getloadavg()[0]
    sent = samples[0]
    stages: list[StageCost] = []
    if "decode" in plan.parts:
        progress("decoding images")
        stages += decoding(info, samples, settings.max_pixels, settings.decode_threads, plan.seconds)
    if "answers" in plan.parts:
        progress("writing answers")
        stages += answering(info, settings.decode_threads, plan.seconds)
    routes = load.routes_of(sent.files, info.config.has_decoder)
    front = service = None
    if "front" in plan.parts:
        with _described(info) as file, serving_nothing(settings, file) as server:
            front = under_load(server, routes, FRONT_CONNECTIONS, (), plan.load_seconds, progress, "front end alone")
    if "service" in plan.parts:
        with serving(settings) as server:
            service = under_load(
                server, routes, plan.connections, SHARES_OF_CAPACITY, plan.load_seconds, progress, "service"
            )
    cores = available_cpus()
    limits = []
    why = "the limit is worked out of all parts: --parts all"
    if plan.limits() and front and service:
        on_accelerator = info.device.startswith("cuda")
        limits = limits_of(engine, stages, front, service, sent.name, cores, on_accelerator)
        why = "what processes use is read from /proc, which this system lacks"
    return ServiceBenchmark(
        machine=Machine(processor=cpu_name(), cores=cores, load_before=before, load_after=os.getloadavg()[0]),
        sample=sent.name,
        sample_kilobytes=sent.mean_bytes / 1000,
        stages=tuple(stages),
        front=front,
        service=service,
        limits=tuple(limits),
        without_limit=None if limits else why,
    )


def under_load(
    server: ServerProcess,
    routes: Sequence[load.Route],
    connections: Sequence[int],
    shares: Sequence[float],
    window_s: float,
    progress: Callable[[str], None],
    what: str,
) -> Served:
    """Each of `routes` with more and more connections, then at `shares` of what it did at its best."""
    figures: list[LoadFigures] = []
    left_out = {}
    for route in routes:
        best = 0.0
        for count in connections:
            progress(f"{what}: {route.name}, {count} connections")
            seconds = load.run_seconds(window_s, count, best or None)
            if seconds is None:
                wait = count / best if best else float("inf")
                left_out[f"{route.name}, {count} connections"] = (
                    f"at {best:.3g} images/s each would wait {wait:.0f} s for an answer: no steady load "
                    f"within {load.MOST_SECONDS:.0f} s"
                )
                continue
            figures.append(load.closed(server, route, count, seconds))
            best = max(best, figures[-1].images_per_s)
        for share in shares if best else ():
            progress(f"{what}: {route.name}, {share:.0%} of its most")
            figures.append(load.opened(server, route, share * best, _open_seconds(window_s)))
    return Served(figures=tuple(figures), left_out=left_out)


def samples_of(folder: Path | None, settings: Settings) -> list[Sample]:
    """Images to measure with.

    Raises:
        ValueError: the folder holds none.
    """
    from service.benchmark.samples import of_folder

    return standard() if folder is None else [of_folder(folder, settings.max_body_bytes)]


def _open_seconds(window_s: float) -> float:
    """Twice as long as a closed run: fewer requests come, and the slow ones are what one looks for."""
    return min(load.MOST_SECONDS, float(round(2 * window_s / load.STEADY + 0.5)))


@contextmanager
def _described(info: EngineInfo) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mae-bench-") as folder:
        path = Path(folder) / "info.json"
        path.write_text(info.model_dump_json())
        yield path
