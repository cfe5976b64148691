"""Timing engines in turns: images per second and milliseconds per batch.

Clock rates, heat and other processes drift during a measurement. So every figure comes from several short turns, each
of which goes through all engines and sizes once, every other time backwards: drift then affects all of them alike.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from model.arrays import Bytes, Indices
from model.config import MAEConfig
from model.engines.base import Engine, gather_visible

Operation = Literal["embed", "reconstruct"]
OPERATIONS: tuple[Operation, ...] = ("embed", "reconstruct")


class Size(NamedTuple):
    """A load on an engine: batches of `batch` images on each of `lanes` lanes at once."""

    operation: Operation
    visible: int
    batch: int
    lanes: int


class Figures(BaseModel):
    """The speed of one engine at one size."""

    model_config = ConfigDict(frozen=True)

    engine: str
    operation: Operation
    visible: int
    """K, the visible patches per image."""
    batch: int
    lanes: int
    images_per_s: float
    """Images per second of all lanes together, the median of the turns."""
    p50_ms: float
    """Median time of a batch in milliseconds, from arrays on the host to arrays on the host."""
    p99_ms: float
    """99th percentile of the same."""
    core_ms: float
    """CPU milliseconds per image of this process, over all its threads; other processes do not count."""
    batches: int
    """Number of batches that were timed."""
    floor_images_per_s: float | None = None
    """Images per second at the roofline (see `model.benchmark.roofline`)."""
    times_floor: float | None = None
    """Time per image, as a multiple of the roofline's."""


@dataclass
class Contender:
    """An engine under a name, and the sizes to measure it at."""

    name: str
    engine: Engine
    sizes: Sequence[Size]


@dataclass
class _Record:
    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    core_seconds: float = 0.0


def sizes_of(engine: Engine) -> list[Size]:
    """The sizes to measure an engine at.

    They are each operation with whole images and with a quarter of the patches, at powers of two of batch and lanes.
    The most telling ones come first: the largest batch, then a single image, then the batches in between.
    """
    config = engine.info.config
    return [
        Size(operation, visible, batch, lanes)
        for batch in _most_telling_first(powers_of_two(engine.info.preferred_batch))
        for operation in OPERATIONS[: 1 + config.has_decoder]
        for visible in dict.fromkeys((config.num_patches, max(1, config.num_patches // 4)))
        for lanes in powers_of_two(engine.info.lanes)
    ]


def _most_telling_first(batches: list[int]) -> list[int]:
    """The largest, the smallest, and the others from the largest on."""
    return list(dict.fromkeys([batches[-1], batches[0], *reversed(batches)]))


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4, … below `limit`, and `limit`."""
    return [*(2**n for n in range((limit - 1).bit_length())), limit]


def measure(
    contenders: Sequence[Contender],
    seconds: float,
    turns: int,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Figures]:
    """Measures every contender at each of its sizes; sizes that several share follow each other.

    Args:
        contenders: the engines to measure.
        seconds: time for one figure, spread over the turns; each turn times at least one batch.
        turns: number of turns.
        progress: is told, in words, of each measurement.

    Raises:
        EngineError: an engine cannot run a batch.
    """
    order = list(dict.fromkeys(size for contender in contenders for size in contender.sizes))
    jobs = [(contender, size) for size in order for contender in contenders if size in contender.sizes]
    records = {(contender.name, size): _Record() for contender, size in jobs}
    for turn in range(turns):
        for done, (contender, size) in enumerate(jobs if turn % 2 == 0 else reversed(jobs)):
            progress(f"turn {turn + 1} of {turns}, figure {done + 1} of {len(jobs)}: {contender.name}")
            record = records[contender.name, size]
            spent, lanes = _run(contender.engine, size, seconds / turns)
            record.core_seconds += spent
            for rate, taken in lanes:
                record.seconds += taken
                record.rates.append(rate)
    return [_figures(contender.name, size, records[contender.name, size], turns) for contender, size in jobs]


def inputs(config: MAEConfig, size: Size) -> tuple[Bytes, Indices]:
    """Noise for one batch of `size`, since the time of an engine does not depend on the image."""
    generator = np.random.default_rng(0)
    n = config.num_patches
    patches = generator.integers(0, 256, (size.batch, n, config.patch_dim), dtype=np.uint8)
    indices = [np.sort(generator.permutation(n)[: size.visible]) for _ in range(size.batch)]
    visible_indices = np.stack(indices).astype(np.int32)
    return (patches if size.operation == "reconstruct" else gather_visible(patches, visible_indices)), visible_indices


def run_once(engine: Engine, size: Size) -> None:
    """Runs one batch on the first lane."""
    _call(engine, size.operation)(0, *inputs(engine.info.config, size))


def _call(engine: Engine, operation: Operation) -> Callable[[int, Bytes, Indices], object]:
    return engine.embed if operation == "embed" else engine.reconstruct


def _run(engine: Engine, size: Size, seconds: float) -> tuple[float, list[tuple[float, list[float]]]]:
    """CPU seconds of all lanes together, and for each lane images per second and the seconds of each batch."""
    patches, visible_indices = inputs(engine.info.config, size)
    call = _call(engine, size.operation)
    start_line = threading.Barrier(size.lanes)

    def warm(lane: int) -> None:  # a first batch may capture a graph or set shapes: that is not measured
        call(lane, patches, visible_indices)

    def work(lane: int) -> tuple[float, list[float]]:
        taken: list[float] = []
        start_line.wait()
        start = now = time.perf_counter()
        while now - start < seconds or not taken:
            call(lane, patches, visible_indices)
            before, now = now, time.perf_counter()
            taken.append(now - before)
        return len(taken) * size.batch / (now - start), taken

    with ThreadPoolExecutor(size.lanes) as pool:
        list(pool.map(warm, range(size.lanes)))
        before = time.process_time()
        lanes = list(pool.map(work, range(size.lanes)))
        return time.process_time() - before, lanes


def _figures(name: str, size: Size, record: _Record, turns: int) -> Figures:
    rates = np.array(record.rates).reshape(turns, size.lanes).sum(axis=1)
    p50, p99 = 1000 * np.percentile(record.seconds, (50, 99))
    return Figures(
        engine=name,
        **size._asdict(),
        images_per_s=float(np.median(rates)),
        p50_ms=float(p50),
        p99_ms=float(p99),
        core_ms=1000 * record.core_seconds / (len(record.seconds) * size.batch),
        batches=len(record.seconds),
    )
