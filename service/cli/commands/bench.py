"""`mae bench`: where the time goes, of the engine by itself and of the whole service."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from model.benchmark.run import TURNS, Benchmark, benchmark
from model.checkpoints.locate import PACKAGED, locate
from model.config import PRESETS
from model.engines.base import Engine, EngineError
from service.benchmark import load
from service.benchmark.processes import ServerFailed
from service.benchmark.report import of_engine, of_service
from service.benchmark.results import ServiceBenchmark
from service.benchmark.run import CONNECTIONS, LOADED, PARTS, Part, Plan, benchmark_service, samples_of
from service.benchmark.samples import Sample
from service.cli.errors import CommandError
from service.cli.files import require_folder, write_output
from service.cli.local_pipeline import build_engine
from service.cli.options import settings_of
from service.settings import Settings

TABLE_WIDTH = 120
MOST_SECONDS = 3600.0


def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="|".join(PRESETS),
            help="Preset; may be given several times. Random weights are made for one of which none are packaged, "
            "unless --weights are given.",
        ),
    ] = None,
    parts: Annotated[
        str,
        typer.Option(
            "--parts",
            metavar="|".join((*PARTS, "all")),
            help="What is measured, by commas. engine: without HTTP; decode and answers: images to patches and results "
            "to JSON and PNG; front: the real server with an engine that answers at once; service: mae serve under "
            "load. With all of them the limit is worked out too.",
        ),
    ] = "engine",
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Measure torch eager and torch.compile on the same device too, and the device's peak: the floor is "
            "the time that the work in the graphs needs at that peak.",
        ),
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="<path>",
            help="Folder of images for all parts but the engine; by default some are made.",
        ),
    ] = None,
    connections: Annotated[
        str,
        typer.Option("--connections", metavar="<int>,…", help="That wrk keeps busy at once, one figure each."),
    ] = ",".join(map(str, CONNECTIONS)),
    seconds: Annotated[
        float,
        typer.Option("--seconds", metavar="<float>", help="To spend on each figure of engine, decode and answers."),
    ] = 1.0,
    load_seconds: Annotated[
        float,
        typer.Option("--load-seconds", metavar="<float>", help="To look at each server under each load, at least."),
    ] = 3.0,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="<path>", help="Write all figures as JSON; - is standard output."),
    ] = None,
    **given: Any,
) -> None:
    """Measure where the time goes: the engine by itself, or with --parts all every stage and the whole service.

    Engine: both operations, whole images and a quarter of the patches, batches of 1, 2, 4, … up to the engine's own, on
    one lane up to all of them at once, one thread a lane as in the service. Every figure is the median of five turns,
    taken alternately with all others; p50 and p99 are over all batches timed. The engine has passed the parity gate.

    Servers are processes of their own on 127.0.0.1. wrk (apt-get install wrk) sends them one image a request, first
    over so many connections, then at random at 50 % and 80 % of the most that was reached. The limit is the number of
    cores over the core-seconds an image of all stages by themselves.
    """
    plan = Plan(
        _parts(parts), _seconds("--seconds", seconds), _seconds("--load-seconds", load_seconds), _counts(connections)
    )
    if plan.parts & LOADED and load.run_seconds(plan.load_seconds, 1, None) is None:
        raise CommandError(f"--load-seconds is at most {load.MOST_SECONDS * load.STEADY:g}")
    if plan.parts & LOADED and not load.wrk_is_there():
        raise CommandError(load.MISSING)
    if compare and "engine" not in plan.parts:
        raise CommandError("--compare is of the engine: add it to --parts")
    if json is not None:
        require_folder(json)
    settings = settings_of(given)
    models: list[str | None] = [None] if model is None else [*model]
    if settings.weights is not None and len(models) > 1:
        raise CommandError("--weights are of one model: give --model once, or not at all")
    samples = _samples(images, settings) if plan.parts - {"engine"} else []
    logging.basicConfig(level=logging.WARNING, format="mae: %(message)s")
    out = sys.stderr if str(json) == "-" else sys.stdout
    width = None if out.isatty() else TABLE_WIDTH  # a file has no edge
    console = Console(file=out, width=width, markup=False, highlight=False)
    found = []
    for name in models:
        with _weights(settings, name) as (one, random):
            engine = build_engine(one).engine
            if plan.parts - {"engine"}:
                _announce(plan, engine, len(samples))
            alone = _engine_alone(engine, one, random, plan, compare)
            for part in of_engine(alone):
                console.print(part)
            entry = alone.model_dump(mode="json")
            if plan.parts - {"engine"}:
                whole = _service(alone, one, plan, samples)
                for part in of_service(whole):
                    console.print(part)
                entry["service"] = whole.model_dump(mode="json")
            found.append(entry)
    if json is not None:
        write_output(json, orjson.dumps({"benchmarks": found}, option=orjson.OPT_INDENT_2) + b"\n")


def _parts(given: str) -> frozenset[Part]:
    names = [name.strip() for name in given.split(",")]
    if names == ["all"]:
        return frozenset(PARTS)
    for name in names:
        if name not in PARTS:
            raise CommandError(f"--parts are {', '.join(PARTS)}, or all (given: {name!r})")
    return frozenset(part for part in PARTS if part in names)


def _counts(given: str) -> tuple[int, ...]:
    counts = [int(text) if text.strip().isdecimal() else 0 for text in given.split(",")]
    if not all(0 < count <= load.MOST_CONNECTIONS for count in counts):
        raise CommandError(f"--connections are numbers from 1 to {load.MOST_CONNECTIONS} (given: {given})")
    return tuple(sorted(set(counts)))


def _seconds(option: str, given: float) -> float:
    if not 0 < given <= MOST_SECONDS:
        raise CommandError(f"{option} is more than 0 and at most {MOST_SECONDS:g} (given: {given:g})")
    return given


def _samples(folder: Path | None, settings: Settings) -> list[Sample]:
    try:
        return samples_of(folder, settings)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _announce(plan: Plan, engine: Engine, samples: int) -> None:
    least, most = plan.duration(engine, samples, 3 if engine.info.config.has_decoder else 2)
    print(f"mae: this takes {least:.0f} s or more, and at most {most:.0f} s", file=sys.stderr)


@contextmanager
def _weights(settings: Settings, model: str | None) -> Iterator[tuple[Settings, bool]]:
    """Settings for `model`, and whether its weights had to be made."""
    settings = settings.model_copy(update={"model": model or settings.model})
    preset = settings.model
    if settings.weights is not None or preset not in PRESETS or (PACKAGED / f"{preset}.safetensors").is_file():
        yield settings, False
        return
    from model.benchmark.weights import write_random_weights

    with tempfile.TemporaryDirectory(prefix="mae-bench-") as folder:
        path = write_random_weights(preset, Path(folder))
        yield settings.model_copy(update={"weights": str(path)}), True


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What says on a terminal what is being done."""
    status = Console(stderr=True).status("measuring")
    if sys.stderr.isatty():
        status.start()
    try:
        yield status.update
    finally:
        status.stop()


def _engine_alone(engine: Engine, settings: Settings, random: bool, plan: Plan, compare: bool) -> Benchmark:
    if "engine" not in plan.parts:
        return Benchmark(engine=engine.info, random_weights=random, seconds=plan.seconds, turns=TURNS, figures=())
    weights = locate(settings.weights, settings.model).path
    try:
        with _progress() as progress:
            return benchmark(
                engine,
                weights,
                plan.seconds,
                preset=settings.model,
                random_weights=random,
                compare=compare,
                progress=progress,
            )
    except EngineError as error:
        raise CommandError(f"the engine failed: {error}") from error


def _service(alone: Benchmark, settings: Settings, plan: Plan, samples: list[Sample]) -> ServiceBenchmark:
    try:
        with _progress() as progress:
            return benchmark_service(alone.engine, alone.figures, settings, plan, samples, progress)
    except (ServerFailed, load.LoadFailed) as error:
        raise CommandError(str(error)) from error
