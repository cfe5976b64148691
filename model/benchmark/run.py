"""One engine's benchmark: its figures, those of its rivals, and the floor beneath them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from model.benchmark.timing import Contender, Figures, Size, measure, run_once, sizes_of
from model.engines.base import Engine, EngineInfo

TURNS = 5


class Benchmark(BaseModel):
    """What was found of one model."""

    model_config = ConfigDict(frozen=True)

    engine: EngineInfo
    random_weights: bool
    """Whether the weights were made for the occasion."""
    seconds: float
    """Spent on each figure, in `turns` turns."""
    turns: int
    peak_flops_per_s: float | None = None
    """Of a large product of matrices on the engine's device in its precision; only beside rivals, like all of these."""
    peak_bytes_per_s: float | None = None
    """Of a large copy, read and written together."""
    flops_per_image: dict[str, int] = {}
    """Of the graphs, by operation and visible patches ("embed 196"); a multiply-add is two."""
    left_out: dict[str, str] = {}
    """Rivals that do not run here, and why: torch.compile needs a C compiler, which an image may lack."""
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
    progress: Callable[[str], None] = lambda said: None,
) -> Benchmark:
    """Measures `engine` at all of its sizes.

    Args:
        engine: one that has passed the gate.
        weights: the checkpoint that it was built from, which rivals load.
        seconds: to spend on each figure.
        preset: what a foreign checkpoint is, as the engine was told.
        random_weights: to be told in the result.
        compare: measure torch's own ways with the same graphs too, and the device's peak.
        turns: see `measure`.
        progress: told in words what is being done.

    Raises:
        EngineError: an engine cannot run a batch.
    """
    sizes = sizes_of(engine)
    info = engine.info
    contenders = [Contender(f"{info.backend} {info.precision}", engine, sizes)]
    if not compare:
        found = measure(contenders, seconds, turns, progress)
        return Benchmark(engine=info, random_weights=random_weights, seconds=seconds, turns=turns, figures=tuple(found))

    # torch enters this process for the comparison alone
    from model.benchmark.baselines import Baseline
    from model.benchmark.roofline import measure_peak, roofline_seconds, works_of
    from model.checkpoints.checkpoint import load

    progress("measuring the device's peak")
    before = measure_peak(info.device, info.precision)
    checkpoint = load(weights, preset, norm_pix_loss=info.config.norm_pix_loss)
    alone = [size for size in sizes if size.lanes == 1]
    left_out = {}
    for kind, compiled in (("torch eager", False), ("torch.compile", True)):
        rival = Baseline(checkpoint, info, compiled)
        name = f"{kind} {rival.info.precision}"
        progress(f"trying {name}")
        if compiled and (reason := _trouble(rival, alone)):
            left_out[name] = reason
        else:
            contenders.append(Contender(name, rival, alone))
    works = {
        (size.operation, size.visible): works_of(
            info.config, size.visible, info.precision, size.operation == "reconstruct"
        )
        for size in sizes
    }
    figures = []
    measured = measure(contenders, seconds, turns, progress)
    peak = before.better(measure_peak(info.device, info.precision))  # twice, lest a neighbour was busy
    for figure in measured:
        floor = figure.batch / roofline_seconds(works[figure.operation, figure.visible], figure.batch, peak)
        update = {"floor_images_per_s": floor, "times_floor": floor / figure.images_per_s}
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


def _trouble(rival: Engine, sizes: Sequence[Size]) -> str | None:
    """Why `rival` cannot run a batch of each size, None if it can: before a figure is taken, it is compiled for all."""
    try:
        for size in sizes:
            run_once(rival, size)
    except Exception as error:  # a compiler fails in every way there is, and the figures of the others still count
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None
