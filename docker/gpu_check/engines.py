"""Step a: the engine alone, as it serves, beside torch eager, torch.compile and the roofline."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache

from gpu_check.context import OPERATIONS, Context, weights_of
from gpu_check.report import Row
from model.atomic_write import atomic_write
from model.benchmark.baselines import Baseline
from model.benchmark.roofline import Peak, Work, measure_peak, roofline_seconds, works_of
from model.benchmark.timing import Contender, Figures, Size, measure, run_once
from model.checkpoints.checkpoint import Checkpoint, load
from model.config import PRESETS
from model.engines.base import Engine, EngineBuildError, EngineInfo, Precision
from model.engines.build import build
from model.engines.settings import EngineSettings

TURNS = 3
AUTOTUNE = "max-autotune-no-cudagraphs"
"""The mode with measured kernels. The CUDA graphs that torch.compile records fail in any thread but the main one, and
lanes are threads."""


def measure_engine(preset: str, context: Context, backend: str | None = None) -> None:
    """Measures the engine that serves `preset`, and torch eager beside it.

    Args:
        preset: the model.
        context: the surroundings.
        backend: the backend to measure; by default the context's.
    """
    backend = backend or context.backend
    report, numbers, step = context.report, context.numbers, step_name(preset, context, backend)
    weights = weights_of(preset, context)
    checkpoint = load(weights)
    eager_name, serving_name = f"torch eager {context.precision}", engine_name(backend, context)
    sizes = sizes_of(preset, numbers.batches)
    planned = [name_of(preset, size, name) for size in sizes for name in (serving_name, eager_name)]
    peak_name = f"peak of the device, {context.precision}"
    report.plan(step, [peak_name, *planned])
    peak = peak_of(context)
    report.add(
        Row(
            step,
            peak_name,
            note=f"{peak.flops_per_s / 1e12:.3g} TFLOP/s in a product, {peak.bytes_per_s / 1e9:.4g} GB/s in a copy",
            details=peak.model_dump(),
        )
    )
    eager = Contender(eager_name, Baseline(checkpoint, describe(checkpoint, preset, context), False), sizes)
    contenders = [eager]
    try:
        serving = _build_engine(preset, context, backend)
    except EngineBuildError as error:  # in its own words; torch eager is still measured
        report.add(Row(step, f"{preset}: {serving_name}", note=_first_line(error), failed=True))
    else:
        contenders.insert(0, Contender(serving_name, serving, sizes))
    for size in sizes:
        asked = [Contender(each.name, each.engine, [size]) for each in contenders]
        for figure in measure(asked, numbers.seconds, TURNS):
            report.add(_row(step, preset, figure, peak))
        lanes = contenders[0].engine.info.lanes
        if size.batch == numbers.batches[0] and lanes > 1:
            crowded = size._replace(lanes=lanes)
            contender = Contender(contenders[0].name, contenders[0].engine, [crowded])
            for figure in measure([contender], numbers.seconds, TURNS):
                report.add(_row(step, preset, figure, peak))


def measure_compiled(context: Context, mode: str | None = None) -> None:
    """Measures torch.compile, one static graph after the other: with a `mode` the most telling one alone."""
    report, numbers = context.report, context.numbers
    step = "a autotune" if mode else "a compile"
    batch = numbers.batches[0]
    jobs = [
        (preset, Size(operation, _visible(preset, divisor), batch, 1))
        for operation, divisor in OPERATIONS[: 1 if mode else 2]
        for preset in numbers.models[: 1 if mode else None]
    ]
    name = f"torch.compile {mode or 'default'} {context.precision}"
    report.plan(step, [name_of(preset, size, name) for preset, size in jobs])
    peak = peak_of(context)
    for preset, size in jobs:
        checkpoint = load(weights_of(preset, context))
        compiled = Baseline(checkpoint, describe(checkpoint, preset, context), True, dynamic=False, mode=mode)
        start = time.monotonic()
        try:
            run_once(compiled, size)
        except Exception as error:  # a compiler may raise anything, and the other figures still count
            report.add(Row(step, name_of(preset, size, name), note=f"left out: {_first_line(error)}"))
            continue
        seconds = time.monotonic() - start
        (figure,) = measure([Contender(name, compiled, [size])], numbers.seconds, TURNS)
        report.add(_row(step, preset, figure, peak, f"compiled in {seconds:.0f} s", {"compile_s": seconds}))


def peak_of(context: Context) -> Peak:
    """The device's peak, which the first step that asks measures for all others."""
    file = context.work / "peak.json"
    if file.is_file():
        return Peak.model_validate_json(file.read_text())
    peak = measure_peak(context.device, context.precision)
    atomic_write(file, peak.model_dump_json().encode())
    return peak


def step_name(preset: str, context: Context, backend: str) -> str:
    """The name of the step that measures `preset`."""
    return f"a {preset}" if backend == context.backend else f"e {preset}"


def engine_name(backend: str, context: Context) -> str:
    """What serves, in words."""
    return f"{backend} {context.precision}" + ", CUDA graphs" * (context.device == "cuda")


def sizes_of(preset: str, batches: Sequence[int]) -> list[Size]:
    """The sizes on one lane: all operations at the first batch size, then at the next."""
    return [
        Size(operation, _visible(preset, divisor), batch, 1) for batch in batches for operation, divisor in OPERATIONS
    ]


def name_of(preset: str, size: Size, engine: str) -> str:
    """The name of a row."""
    lanes = f" x {size.lanes} lanes" if size.lanes > 1 else ""
    return f"{preset} {size.operation} K={size.visible} batch {size.batch}{lanes}: {engine}"


def describe(checkpoint: Checkpoint, preset: str, context: Context) -> EngineInfo:
    """The description that a baseline needs, without an engine being built."""
    return EngineInfo(
        backend="torch",
        precision=context.precision,
        computes=context.precision,
        device=context.device,
        model=preset,
        weights="",
        layout=checkpoint.layout,
        license=checkpoint.license,
        config=checkpoint.config,
        preprocessing=checkpoint.preprocessing,
        lanes=1,
        threads_per_lane=1,
        preferred_batch=context.numbers.batches[0],
        versions={},
    )


def _build_engine(preset: str, context: Context, backend: str) -> Engine:
    """The engine as `mae serve` builds it, which includes the parity check.

    Raises:
        EngineBuildError: it cannot be built, differs from the model, or does not serve on the device of the check.
    """
    settings = {**context.engine_settings(), "backend": backend, "max_batch": context.numbers.batches[0]}
    engine = build(EngineSettings(model=preset, weights=str(weights_of(preset, context)), **settings)).engine
    if not engine.info.device.startswith(context.device):
        raise EngineBuildError(f"it serves on {engine.info.device}: {engine.info.fallback}")
    return engine


def _visible(preset: str, divisor: int) -> int:
    return PRESETS[preset].num_patches // divisor


@cache
def _works(preset: str, visible: int, precision: Precision, decodes: bool) -> list[Work]:
    return works_of(PRESETS[preset], visible, precision, decodes)


def _row(
    step: str, preset: str, figure: Figures, peak: Peak, note: str = "", details: dict[str, float] | None = None
) -> Row:
    size = Size(figure.operation, figure.visible, figure.batch, figure.lanes)
    works = _works(preset, figure.visible, peak.precision, figure.operation == "reconstruct")
    return Row(
        step,
        name_of(preset, size, figure.engine),
        per_s=figure.images_per_s,
        p50_ms=figure.p50_ms,
        roofline_per_s=figure.batch / roofline_seconds(works, figure.batch, peak),
        core_ms=figure.core_ms,
        note=note,
        details={"model": preset, **figure.model_dump(exclude_none=True), **(details or {})},
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
