"""`mae bench`: how fast the engine is by itself, without HTTP."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.benchmark.run import Benchmark, benchmark
from model.config import PRESETS
from model.engines.base import EngineError
from model.source import PACKAGED, locate
from service.commands.errors import CommandError
from service.commands.files import require_folder, write_output
from service.commands.options import settings_of
from service.commands.running import build_engine
from service.settings import Settings

TABLE_WIDTH = 120


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
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Measure torch eager and torch.compile on the same device too, and the device's peak: the floor is "
            "the time that the work in the graphs needs at that peak.",
        ),
    ] = False,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="<float>", help="To spend on each figure.", show_default=True)
    ] = 1.0,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="<path>", help="Write all figures as JSON; - is standard output."),
    ] = None,
    **given: Any,
) -> None:
    """Measure images a second and milliseconds a batch of the engine that would serve, without HTTP.

    Both operations, whole images and a quarter of the patches, batches of 1, 2, 4, … up to the engine's own, on one
    lane up to all of them at once, one thread a lane as in the service. Every figure is the median of five turns, taken
    alternately with all others; p50 and p99 are over all batches timed. The engine has passed the parity gate.
    """
    if not 0 < seconds <= 3600:
        raise CommandError(f"--seconds is more than 0 and at most 3600 (given: {seconds:g})")
    if json is not None:
        require_folder(json)
    settings = settings_of(given)
    models: list[str | None] = [None] if model is None else [*model]
    if settings.weights is not None and len(models) > 1:
        raise CommandError("--weights are of one model: give --model once, or not at all")
    logging.basicConfig(level=logging.WARNING, format="mae: %(message)s")
    out = sys.stderr if str(json) == "-" else sys.stdout
    width = None if out.isatty() else TABLE_WIDTH  # a file has no edge
    console = Console(file=out, width=width, markup=False, highlight=False)
    found = []
    for name in models:
        with _weights(settings, name) as (one, random):
            found.append(_benchmark(one, random, seconds, compare))
        for part in _shown(found[-1]):
            console.print(part)
    if json is not None:
        document = {"benchmarks": [result.model_dump(mode="json") for result in found]}
        write_output(json, orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")


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


def _benchmark(settings: Settings, random: bool, seconds: float, compare: bool) -> Benchmark:
    engine = build_engine(settings)
    weights = locate(settings.weights, settings.model).path
    status = Console(stderr=True).status("measuring")
    if sys.stderr.isatty():
        status.start()
    try:
        return benchmark(
            engine,
            weights,
            seconds,
            preset=settings.model,
            random_weights=random,
            compare=compare,
            progress=status.update,
        )
    except EngineError as error:
        raise CommandError(f"the engine failed: {error}") from error
    finally:
        status.stop()


def _shown(found: Benchmark) -> Sequence[Text | Table]:
    info = found.engine
    weights = "random weights, on which speed does not depend" if found.random_weights else info.weights[:12]
    lines = [
        f"{info.model} ({weights})",
        f"{info.backend} {info.precision} on {info.device}, {info.lanes} lanes of {info.threads_per_lane} threads, "
        f"batches of {info.preferred_batch}",
    ]
    if info.parity is not None:
        lines[-1] += f", centred cosine to eager float32 {info.parity.cosine:.6f}"
    if info.fallback:
        lines.append(f"not the preferred backend: {info.fallback}")
    compared = found.peak_flops_per_s is not None and found.peak_bytes_per_s is not None
    if compared:
        work = ", ".join(f"{name}: {flops / 1e9:.2f}" for name, flops in found.flops_per_image.items())
        lines += [
            f"peak seen here: {(found.peak_flops_per_s or 0) / 1e12:.3g} TFLOP/s in a large product, "
            f"{(found.peak_bytes_per_s or 0) / 1e9:.3g} GB/s in a large copy",
            f"GFLOP an image (torch's counter): {work}",
        ]
    lines += [f"{name} left out: {reason}" for name, reason in found.left_out.items()]
    table = Table(box=SIMPLE_HEAD)
    table.add_column("operation")
    table.add_column("K", justify="right")
    table.add_column("batch", justify="right")
    table.add_column("lanes", justify="right")
    table.add_column("engine", no_wrap=True)
    for name in ("images/s", "p50 ms", "p99 ms", *(("floor images/s", "x floor") if compared else ())):
        table.add_column(name, justify="right")
    for figure in found.figures:
        numbers = [_three(figure.images_per_s), _three(figure.p50_ms), _three(figure.p99_ms)]
        if figure.floor_images_per_s is not None and figure.times_floor is not None:
            numbers += [_three(figure.floor_images_per_s), f"{figure.times_floor:.2f}"]
        place = (figure.operation, str(figure.visible), str(figure.batch), str(figure.lanes))
        table.add_row(*place, figure.engine, *numbers)
    return Text("\n".join(lines)), table


def _three(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
