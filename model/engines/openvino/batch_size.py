"""How many images a lane likes best in one batch: measured once on this machine, and kept in the engine cache."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from model.engines.base import Engine
from model.engines.cache import EngineCache, fingerprint
from model.engines.cpu import processor
from model.engines.parity import quarter_seen
from model.masking import all_indices

log = logging.getLogger(__name__)
SIZES = (1, 2, 4, 8, 16)
MATTERING = ("entry", "precision", "computes", "lanes", "threads_per_lane", "versions")
SECONDS = 3.0
"""Measuring stops by then, also where a batch is slow."""
TURNS = 3
WARM_SECONDS = 0.5
WORTH = 1.03
"""A larger batch keeps each image in it waiting: it has to be faster by this."""
Seconds = Callable[[int], float]


class Found(BaseModel):
    """What was measured."""

    batch: int = Field(gt=0)
    rates: dict[int, float]
    """Images a second of all lanes together, by the batch."""


def preferred_batch(engine: Engine, cache: EngineCache, progress: Callable[[str], None]) -> int:
    """What was noted in `cache` for this engine on this kind of processor, or else what is measured now and noted.

    A note that cannot be read is measured anew; one that cannot be written is named in the log.
    """
    info = engine.info
    name = f"batch-{fingerprint({'processor': processor(), **info.model_dump(include=set(MATTERING))})}"
    try:
        return Found.model_validate(cache.read_note(name)).batch
    except ValidationError:  # there is none, or none of ours
        progress("measuring which batch a lane likes best")
    found = choose(lambda size: seconds_of(engine, size), engine.lanes)
    rates = ", ".join(f"{size}: {rate:.3g}" for size, rate in found.rates.items())
    log.info("batches of %d are preferred; images a second by batch: %s", found.batch, rates)
    cache.write_note(name, found.model_dump())
    return found.batch


def choose(seconds: Seconds, lanes: int, within: float = SECONDS, clock: Callable[[], float] = time.monotonic) -> Found:
    """The smallest batch within 3 % of the best.

    Batches are doubled as long as that pays, and as long as the next is likely to be measured in time.

    Args:
        seconds: measures one batch of a size on every lane at once.
        lanes: how many there are.
        within: seconds for everything.
        clock: tells the time.
    """
    end = clock() + within
    best: dict[int, float] = {}
    idle = 0
    for size in SIZES:
        if best and clock() + 2 * best[size // 2] > end:
            break
        for _ in range(TURNS):
            taken = seconds(size)
            best[size] = min(taken, best.get(size, taken))
            if clock() + taken > end:
                break
        rate = size / best[size]
        idle = idle + 1 if size > 1 and rate < WORTH * max(n / best[n] for n in best if n < size) else 0
        if idle == 2:
            break
    rates = {size: lanes * size / taken for size, taken in best.items()}
    return Found(batch=_smallest(rates), rates=rates)


def _smallest(rates: Mapping[int, float]) -> int:
    most = max(rates.values())
    return min(size for size, rate in rates.items() if rate * WORTH >= most)


def seconds_of(engine: Engine, size: int) -> float:
    """How long all lanes at once take for a batch of whole images and one of which a quarter is seen."""
    config = engine.info.config
    whole = np.random.default_rng(0).integers(0, 256, (size, config.num_patches, config.patch_dim), dtype=np.uint8)
    everywhere = np.repeat(all_indices(config.num_patches)[None], size, axis=0)
    seen = quarter_seen(config, size)
    quarter = np.take_along_axis(whole, seen[..., None], axis=1)
    line = threading.Barrier(engine.lanes)

    def work(lane: int) -> float:
        line.wait()
        start = time.perf_counter()
        engine.embed(lane, whole, everywhere)
        engine.embed(lane, quarter, seen)
        return time.perf_counter() - start

    with ThreadPoolExecutor(engine.lanes) as pool:
        return max(pool.map(work, range(engine.lanes)))


def warm(engine: Engine, within: float = WARM_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
    """Runs batches of 1, 2, … of the usual shapes on all lanes, as far as `within` seconds reach.

    The first batch of a shape makes its kernels, which takes longer than a single image does.
    """
    end, taken = clock() + within, 0.0
    for size in range(1, engine.preferred_batch + 1):
        if clock() + taken > end:
            return
        taken = seconds_of(engine, size)
