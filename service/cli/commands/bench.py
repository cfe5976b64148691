"""`mae bench`: measures the engine alone, and where the time of the whole service goes."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from model.benchmark.run import TURNS, Benchmark, benchmark
from model.benchmark.timing import Figures
from model.checkpoints.locate import PACKAGED, locate
from model.config import PRESETS
from model.engines.base import Engine, EngineError
from model.engines.measure import finish_measurement
from service.benchmark import load
from service.benchmark.processes import ServerFailed
from service.benchmark.results import ServiceBenchmark
from service.benchmark.run import CONNECTIONS, PARTS, BenchmarkPlan, benchmark_service
from service.benchmark.samples import Sample
from service.cli.benchmark_options import check_plan, check_seconds, parse_connections, parse_parts, read_samples
from service.cli.benchmark_tables import engine_description, engine_rows, left_out_lines, service_tables
from service.cli.errors import CommandError
from service.cli.files import require_folder, write_output
from service.cli.local_pipeline import build_engine
from service.cli.options import settings_of
from service.settings import Settings

TABLE_WIDTH = 120


def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="|".join(PRESETS),
            help="Preset to measure; may be given several times. A preset without packaged weights gets random ones, "
            "unless --weights is given.",
        ),
    ] = None,
    parts: Annotated[
        str,
        typer.Option(
            "--parts",
            metavar="|".join((*PARTS, "all")),
            help="Parts to measure, separated by commas. engine: the engine without HTTP; decode: images to patches; "
            "answers: results to JSON and PNG; front: the real server with an engine that answers at once; service: "
            "mae serve under load. With all of them, the limit is computed too.",
        ),
    ] = "engine",
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Measure the baselines torch eager and torch.compile on the same device too, and the roofline: the "
            "throughput that the device's peak allows for the work in the graphs.",
        ),
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="<path>",
            help="Folder of images for all parts but the engine; by default images are generated.",
        ),
    ] = None,
    connections: Annotated[
        str,
        typer.Option(
            "--connections", metavar="<int>,…", help="Numbers of connections that wrk keeps busy, one load for each."
        ),
    ] = ",".join(map(str, CONNECTIONS)),
    seconds: Annotated[
        float,
        typer.Option("--seconds", metavar="<float>", help="Seconds for each figure of engine, decode and answers."),
    ] = 1.0,
    load_seconds: Annotated[
        float,
        typer.Option(
            "--load-seconds", metavar="<float>", help="Seconds for which each server is measured under each load."
        ),
    ] = 3.0,
    max_autotune: Annotated[
        bool,
        typer.Option(
            "--max-autotune",
            help="With --compare: measure torch.compile with max-autotune too, for one size alone: embed, whole "
            "images, the largest batch.",
        ),
    ] = False,
    time_limit: Annotated[
        float | None,
        typer.Option(
            "--time-limit",
            metavar="<float>",
            help="Seconds after which no further size of an engine is measured; a compilation is ended. What is left "
            "out is named.",
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="<path>",
            help="Write all figures as JSON; the file is written anew after each size. - is standard output.",
        ),
    ] = None,
    **options: Any,
) -> None:
    """Measure how fast the engine is alone, or with --parts all where the time of the whole service goes.

    Engine: both operations, whole images and a quarter of the patches, batches of 1, 2, 4, … up to the engine's own, on
    one lane up to all lanes at once, with as many threads per lane as in the service. The largest batch comes first,
    then a single image. Each figure is the median of five turns, which alternate with those of the other engines at the
    same size; p50 and p99 are over all timed batches. The engine has passed the parity check. Rows are printed as they
    are measured.

    Servers are separate processes on 127.0.0.1. wrk (apt-get install wrk) sends them one image per request: first over
    the given numbers of connections, then at random times at 50 % and 80 % of the best throughput. The limit is the
    number of cores over the core-seconds per image of all stages, each measured alone.
    """
    start = time.monotonic()
    plan = BenchmarkPlan(
        parts=parse_parts(parts),
        seconds=check_seconds("--seconds", seconds),
        load_seconds=check_seconds("--load-seconds", load_seconds),
        connections=parse_connections(connections),
    )
    check_plan(plan, compare, max_autotune)
    deadline = None if time_limit is None else start + check_seconds("--time-limit", time_limit)
    if json is not None:
        require_folder(json)
    settings = settings_of(options)
    if settings.weights is not None and model is not None and len(model) > 1:
        raise CommandError("--weights belongs to one model: give --model once, or not at all")
    samples = read_samples(images, settings) if plan.parts - {"engine"} else []
    logging.basicConfig(level=logging.WARNING, format="mae: %(message)s")
    console = _table_console(json)
    results: list[dict[str, Any]] = []

    def write(unfinished: dict[str, Any] | None = None) -> None:
        if json is not None and (unfinished is None or str(json) != "-"):
            benchmarks = [*results, *filter(None, [unfinished])]
            write_output(json, orjson.dumps({"benchmarks": benchmarks}, option=orjson.OPT_INDENT_2) + b"\n")

    names: Sequence[str | None] = model or [settings.model]
    for name in names:
        with _settings_for(name, settings) as (model_settings, random_weights):
            comparison = _Comparison(compare, max_autotune, deadline)
            results.append(_bench_model(model_settings, random_weights, plan, comparison, samples, console, write))
        if compare:
            _forget_compiled_graphs()
    write()


@dataclass(frozen=True)
class _Comparison:
    """What is measured beside the engine, and until when."""

    baselines: bool
    max_autotune: bool
    deadline: float | None
    """The time of `time.monotonic`; None for no limit."""


def _forget_compiled_graphs() -> None:
    """Has torch.compile forget one model before the next: it compiles the same code for a few models only."""
    import torch  # here: only a comparison needs it

    torch.compiler.reset()


def _table_console(json: Path | None) -> Console:
    """A console for tables: on standard output, or on standard error if the JSON goes to standard output."""
    stream = sys.stderr if str(json) == "-" else sys.stdout
    width = None if stream.isatty() else TABLE_WIDTH  # a file has no width of its own
    return Console(file=stream, width=width, markup=False, highlight=False)


@contextmanager
def _settings_for(model: str | None, settings: Settings) -> Iterator[tuple[Settings, bool]]:
    """The settings with this `model`, and whether its weights are random; random weights are deleted afterwards."""
    settings = settings.model_copy(update={"model": model})
    if settings.weights is not None or model not in PRESETS or (PACKAGED / f"{model}.safetensors").is_file():
        yield settings, False
        return
    from model.benchmark.weights import write_random_weights

    with tempfile.TemporaryDirectory(prefix="mae-bench-") as folder:
        path = write_random_weights(model, Path(folder))
        yield settings.model_copy(update={"weights": str(path)}), True


def _bench_model(
    settings: Settings,
    random_weights: bool,
    plan: BenchmarkPlan,
    comparison: _Comparison,
    samples: list[Sample],
    console: Console,
    write: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Measures one model and prints its tables; returns the figures for JSON, which `write` gets as they come."""
    served = build_engine(settings)
    if served.info.batch_curves is None:
        try:
            finish_measurement(served)  # the largest batch of the table follows from it
        except EngineError as error:
            raise CommandError(f"the engine failed: {error}") from error
    engine = served.engine
    if plan.parts - {"engine"}:
        _announce_duration(plan, engine, len(samples))
    engine_benchmark = _bench_engine(engine, settings, random_weights, plan, comparison, console, write)
    figures = engine_benchmark.model_dump(mode="json")
    if plan.parts - {"engine"}:
        service_benchmark = _bench_service(engine_benchmark, settings, plan, samples)
        for table in service_tables(service_benchmark):
            console.print(table)
        figures["service"] = service_benchmark.model_dump(mode="json")
    return figures


def _announce_duration(plan: BenchmarkPlan, engine: Engine, samples: int) -> None:
    shortest, longest = plan.duration(engine, samples, routes=3 if engine.info.config.has_decoder else 2)
    print(f"mae: this takes between {shortest:.0f} s and {longest:.0f} s", file=sys.stderr)


def _bench_engine(
    engine: Engine,
    settings: Settings,
    random_weights: bool,
    plan: BenchmarkPlan,
    comparison: _Comparison,
    console: Console,
    write: Callable[[dict[str, Any]], None],
) -> Benchmark:
    """Measures the engine, and prints and writes each row as soon as it is there."""
    if "engine" not in plan.parts:
        unmeasured = Benchmark(
            engine=engine.info, random_weights=random_weights, seconds=plan.seconds, turns=TURNS, figures=()
        )
        console.print(engine_description(unmeasured))
        return unmeasured
    weights = locate(settings.weights, settings.model).path

    printed: list[Benchmark] = []

    def report(benchmark: Benchmark, figures: Sequence[Figures]) -> None:
        is_first = len(figures) == len(benchmark.figures)
        if figures and is_first:
            printed.append(benchmark)
            console.print(engine_description(benchmark))
        if figures:
            console.print(engine_rows(figures, with_header=is_first), end="")
        write(benchmark.model_dump(mode="json"))

    try:
        with _show_progress() as progress:
            result = benchmark(
                engine,
                weights,
                plan.seconds,
                preset=settings.model,
                random_weights=random_weights,
                compare=comparison.baselines,
                max_autotune=comparison.max_autotune,
                deadline=comparison.deadline,
                progress=progress,
                report=report,
            )
    except EngineError as error:
        raise CommandError(f"the engine failed: {error}") from error
    if result.left_out:
        console.print(left_out_lines(result.left_out))
    if printed and (peak := result.peak_flops_per_s) and peak > 1.01 * (printed[0].peak_flops_per_s or peak):
        console.print(
            f"a second measurement found a higher peak, {peak / 1e12:.3g} TFLOP/s: the JSON's rooflines follow it"
        )
    return result


def _bench_service(
    engine: Benchmark, settings: Settings, plan: BenchmarkPlan, samples: list[Sample]
) -> ServiceBenchmark:
    try:
        with _show_progress() as progress:
            return benchmark_service(engine.engine, engine.figures, settings, plan, samples, progress)
    except (ServerFailed, load.LoadFailed) as error:
        raise CommandError(str(error)) from error


@contextmanager
def _show_progress() -> Iterator[Callable[[str], None]]:
    """A function that shows the current step on a terminal."""
    status = Console(stderr=True).status("measuring")
    if sys.stderr.isatty():
        status.start()
    try:
        yield status.update
    finally:
        status.stop()
