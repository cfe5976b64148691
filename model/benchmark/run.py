"""The benchmark of one engine: its figures, those of the baselines, and the roofline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from model.benchmark.timing import Contender, Figures, Size, measure, run_once, sizes_of
from model.engines.base import Engine, EngineInfo

TURNS = 5


class Benchmark(BaseModel):
    """The results of a benchmark of one model."""

    model_config = ConfigDict(frozen=True)

    engine: EngineInfo
    random_weights: bool
    """Whether the weights are random ones, made for the benchmark."""
    seconds: float
    """Seconds spent on each figure, in `turns` turns."""
    turns: int
    peak_flops_per_s: float | None = None
    """Speed of a large matrix product on the engine's device in its precision. It is measured only in a comparison with
    baselines, as are the next three."""
    peak_bytes_per_s: float | None = None
    """Speed of a large copy: bytes read and bytes written together."""
    flops_per_image: dict[str, int] = {}
    """Operations of the graphs by route and visible patches ("embed 196"); a multiply-add is two."""
    left_out: dict[str, str] = {}
    """Baselines that do not run here, with the reason: torch.compile needs a C compiler, which an image may lack."""
    figures: tuple[Figures, ...]


def benchmark(
    engine: Engine,
    weights: Path,
    seconds: float,
    *,
    preset: str | None = None,
    random_weights: bool = False,
    compare: bool = False,
    turns: int = TURNS,
    progress: Callable[[str], None] = lambda text: None,
) -> Benchmark:
    """Measures `engine` at all of its batch sizes and lanes.

    Args:
        engine: an engine that has passed the parity check.
        weights: the checkpoint that it was built from, which the baselines load.
        seconds: time to spend on each figure.
        preset: the preset that a foreign checkpoint is, the same as for the engine.
        random_weights: recorded in the result.
        compare: measure the baselines with the same graphs too, and the device's peak.
        turns: see `measure`.
        progress: is told, in words, of each step of the work.

    Raises:
        EngineError: an engine cannot run a batch.
    """
    sizes = sizes_of(engine)
    info = engine.info
    contenders = [Contender(f"{info.backend} {info.precision}", engine, sizes)]
    if not compare:
        figures = measure(contenders, seconds, turns, progress)
        return Benchmark(
            engine=info, random_weights=random_weights, seconds=seconds, turns=turns, figures=tuple(figures)
        )

    # Only a comparison imports torch.
    from model.benchmark.baselines import Baseline
    from model.benchmark.roofline import measure_peak, roofline_seconds, works_of
    from model.checkpoints.checkpoint import load

    progress("measuring the device's peak")
    before = measure_peak(info.device, info.precision)
    checkpoint = load(weights, preset, norm_pix_loss=info.config.norm_pix_loss)
    one_lane = [size for size in sizes if size.lanes == 1]
    left_out = {}
    for kind, compiled in (("torch eager", False), ("torch.compile", True)):
        baseline = Baseline(checkpoint, info, compiled)
        name = f"{kind} {baseline.info.precision}"
        progress(f"trying {name}")
        if compiled and (reason := _failure(baseline, one_lane)):
            left_out[name] = reason
        else:
            contenders.append(Contender(name, baseline, one_lane))
    works = {
        (size.operation, size.visible): works_of(
            info.config, size.visible, info.precision, size.operation == "reconstruct"
        )
        for size in sizes
    }
    figures = []
    measured = measure(contenders, seconds, turns, progress)
    peak = before.better(measure_peak(info.device, info.precision))  # measured twice, in case the machine was busy
    for figure in measured:
        roofline = figure.batch / roofline_seconds(works[figure.operation, figure.visible], figure.batch, peak)
        update = {"floor_images_per_s": roofline, "times_floor": roofline / figure.images_per_s}
        figures.append(figure.model_copy(update=update))
    return Benchmark(
        engine=info,
        random_weights=random_weights,
        seconds=seconds,
        turns=turns,
        peak_flops_per_s=peak.flops_per_s,
        peak_bytes_per_s=peak.bytes_per_s,
        flops_per_image={f"{o} {k}": sum(work.flops for work in parts) for (o, k), parts in works.items()},
        left_out=left_out,
        figures=tuple(figures),
    )


def _failure(baseline: Engine, sizes: Sequence[Size]) -> str | None:
    """Runs a batch of each size, which compiles it, and says why `baseline` cannot; None if it can."""
    try:
        for size in sizes:
            run_once(baseline, size)
    except Exception as error:  # a compiler may raise anything, and the figures of the others still count
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None
