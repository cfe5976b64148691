"""The benchmark of one engine: its figures, those of the baselines, and the roofline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from model.benchmark.time_limit import TimeOver, limit_time
from model.benchmark.timing import Contender, Figures, Operation, Size, measure, run_once, sizes_of
from model.engines.base import Engine, EngineInfo

if TYPE_CHECKING:
    from model.benchmark.roofline import Peak, Work

TURNS = 5
TIME_OVER = "the time limit was over"


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
    """Baselines that do not run here, and sizes that were not measured in time, with the reason."""
    figures: tuple[Figures, ...]


def benchmark(
    engine: Engine,
    weights: Path,
    seconds: float,
    *,
    preset: str | None = None,
    random_weights: bool = False,
    compare: bool = False,
    max_autotune: bool = False,
    turns: int = TURNS,
    deadline: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
    report: Callable[[Benchmark, Sequence[Figures]], None] = lambda benchmark, figures: None,
) -> Benchmark:
    """Measures `engine` at all of its batch sizes and lanes, the most telling sizes first.

    Args:
        engine: an engine that has passed the parity check.
        weights: the checkpoint that it was built from, which the baselines load.
        seconds: time to spend on each figure.
        preset: the preset that a foreign checkpoint is, the same as for the engine.
        random_weights: recorded in the result.
        compare: measure the baselines with the same graphs too, and the device's peak.
        max_autotune: measure torch.compile with max-autotune too, for `embed` with whole images in the largest batch.
        turns: see `measure`.
        deadline: the time (of `time.monotonic`) after which nothing more is measured, and at which a compilation ends.
            Only a process's main thread can end a compilation. None for no limit.
        progress: is told, in words, of each step of the work.
        report: is given the results so far, and those figures that are new, after each size.

    Raises:
        EngineError: an engine cannot run a batch.
    """
    measured = _Results(engine.info, random_weights, seconds, turns, deadline, progress, report)
    sizes = sizes_of(engine)
    own = Contender(engine_name(engine.info), engine, sizes)
    if not compare:
        measured.measure_all([own])
        return measured.result

    # Only a comparison imports torch.
    from model.benchmark.baselines import Baseline, record_cuda_graphs
    from model.checkpoints.checkpoint import load

    info = engine.info
    measured.count_work(sizes)
    measured.measure_peak()
    heads = (info.config.num_heads, info.config.decoder_num_heads) if info.config.family == "vit" else None
    checkpoint = load(weights, preset, info.config.norm_pix_loss, heads)
    one_lane = [size for size in sizes if size.lanes == 1]
    eager = Baseline(checkpoint, info, compiled=False)
    contenders = [own, Contender(f"torch eager {eager.info.precision}", eager, one_lane)]
    if is_on_gpu(info) and own.name != f"torch {eager.info.precision}, cuda graphs":
        recorded = record_cuda_graphs(checkpoint, eager.info)
        contenders.append(Contender(f"torch {eager.info.precision}, cuda graphs", recorded, one_lane))
    measured.measure_all(contenders)
    # Compilers come last: they take long, and may fail.
    compiled = Baseline(checkpoint, info, compiled=True)
    measured.measure_compiled(Contender(f"torch.compile {compiled.info.precision}", compiled, one_lane))
    if max_autotune:
        tuned = Baseline(checkpoint, info, compiled=True, dynamic=False, mode=MAX_AUTOTUNE)
        largest = Size("embed", info.config.num_patches, info.preferred_batch, 1)
        measured.measure_compiled(Contender(f"torch.compile max-autotune {tuned.info.precision}", tuned, [largest]))
    if measured.has_time():
        measured.measure_peak()
    return measured.result


MAX_AUTOTUNE = "max-autotune-no-cudagraphs"
"""torch.compile's mode. With its own CUDA graphs it fails in threads that it does not know (torch 2.11)."""


def is_on_gpu(info: EngineInfo) -> bool:
    """Whether an engine runs on a GPU."""
    return info.device != "cpu"


def engine_name(info: EngineInfo) -> str:
    """The name of an engine beside its baselines, such as "torch fp16, cuda graphs"."""
    name = f"{info.backend} {info.precision}"
    return name if info.torch is None else f"{name}, {info.torch.mode}"


class _Results:
    """The results so far; each size is reported as soon as it is measured."""

    def __init__(
        self,
        info: EngineInfo,
        random_weights: bool,
        seconds: float,
        turns: int,
        deadline: float | None,
        progress: Callable[[str], None],
        report: Callable[[Benchmark, Sequence[Figures]], None],
    ) -> None:
        self.result = Benchmark(engine=info, random_weights=random_weights, seconds=seconds, turns=turns, figures=())
        self._deadline = deadline
        self._progress = progress
        self._report = report
        self._peak: Peak | None = None
        self._works: dict[tuple[Operation, int], list[Work]] = {}

    def count_work(self, sizes: Sequence[Size]) -> None:
        """Counts the work of the graphs."""
        from model.benchmark.roofline import works_of

        info = self.result.engine
        self._works = {
            (size.operation, size.visible): works_of(
                info.config, size.visible, info.precision, size.operation == "reconstruct"
            )
            for size in sizes
        }
        self._update(
            flops_per_image={f"{o} {k}": sum(work.flops for work in parts) for (o, k), parts in self._works.items()}
        )

    def measure_peak(self) -> None:
        """Measures the device's peak; a second time in case the machine was busy. The higher one counts for all."""
        from model.benchmark.roofline import measure_peak

        info = self.result.engine
        self._progress("measuring the device's peak")
        peak = measure_peak(info.device, info.precision)
        self._peak = peak if self._peak is None else self._peak.better(peak)
        self._update(
            peak_flops_per_s=self._peak.flops_per_s,
            peak_bytes_per_s=self._peak.bytes_per_s,
            figures=tuple(map(self._beside_roofline, self.result.figures)),
        )
        self._report(self.result, ())

    def has_time(self) -> bool:
        """Whether the deadline has not passed."""
        return self._deadline is None or time.monotonic() < self._deadline

    def measure_all(self, contenders: Sequence[Contender]) -> None:
        """Measures the contenders at their sizes; those that share a size take turns.

        Raises:
            EngineError: an engine cannot run a batch.
        """
        for size in self._in_time(contenders[0]):
            sharing = [Contender(each.name, each.engine, [size]) for each in contenders if size in each.sizes]
            figures = measure(sharing, self.result.seconds, self.result.turns, self._progress)
            figures = [self._beside_roofline(figure) for figure in figures]
            self._update(figures=(*self.result.figures, *figures))
            self._report(self.result, figures)

    def measure_compiled(self, contender: Contender) -> None:
        """Measures a contender that compiles at its first batches, or leaves it out with the reason."""
        self._progress(f"trying {contender.name}")
        remaining = None if self._deadline is None else self._deadline - time.monotonic()
        try:
            with limit_time(remaining):
                reason = _failure(contender.engine, contender.sizes)
        except TimeOver:
            reason = TIME_OVER
        if reason is None:
            self.measure_all([contender])
        else:
            self._leave_out(contender.name, reason)

    def _in_time(self, contender: Contender) -> Iterator[Size]:
        """The sizes of a contender, as long as there is time."""
        for done, size in enumerate(contender.sizes):
            if not self.has_time():
                self._leave_out(
                    f"{contender.name}: {len(contender.sizes) - done} of {len(contender.sizes)} sizes", TIME_OVER
                )
                return
            yield size

    def _beside_roofline(self, figure: Figures) -> Figures:
        if self._peak is None:
            return figure
        from model.benchmark.roofline import roofline_seconds

        works = self._works[figure.operation, figure.visible]
        roofline = figure.batch / roofline_seconds(works, figure.batch, self._peak)
        update = {"floor_images_per_s": roofline, "times_floor": roofline / figure.images_per_s}
        return figure.model_copy(update=update)

    def _leave_out(self, name: str, reason: str) -> None:
        self._update(left_out={**self.result.left_out, name: reason})
        self._report(self.result, ())

    def _update(self, **changes: object) -> None:
        self.result = self.result.model_copy(update=changes)


def _failure(baseline: Engine, sizes: Sequence[Size]) -> str | None:
    """Runs a batch of each size, which compiles it, and says why `baseline` cannot; None if it can."""
    try:
        for size in sizes:
            run_once(baseline, size)
    except Exception as error:  # a compiler may raise anything, and the figures of the others still count
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return None
