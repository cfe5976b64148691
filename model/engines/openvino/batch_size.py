"""The batch size that suits a lane best: measured once on a kind of CPU, and kept in the engine cache."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from pydantic import BaseModel, Field, ValidationError

from model.engines.base import Engine
from model.engines.cache import EngineCache, fingerprint
from model.engines.cpu import cpu_name
from model.engines.measure import time_batch

log = logging.getLogger(__name__)
SIZES = (1, 2, 4, 8, 16)
RELEVANT_INFO = ("entry", "precision", "computes", "lanes", "threads_per_lane", "versions")
"""Fields of `EngineInfo` that the result depends on."""
SECONDS = 3.0
"""Seconds after which measuring stops, even where a batch is slow."""
TURNS = 3
WARM_UP_SECONDS = 0.5
MIN_GAIN = 1.03
"""A larger batch keeps each image in it waiting, so it must be faster by this factor."""
TimeBatch = Callable[[int], float]
"""Takes a batch size, and returns the seconds of one batch on every lane at once."""


class MeasuredBatchSize(BaseModel):
    """The batch size that was chosen, and the measurements."""

    batch: int = Field(gt=0, le=SIZES[-1])
    rates: dict[int, float]
    """Images/s of all lanes together, by batch size."""


def obtain_batch_size(engine: Engine, cache: EngineCache, progress: Callable[[str], None]) -> int:
    """Reads the batch size kept in `cache` for this engine on this kind of CPU, or measures and keeps it.

    If the sidecar file cannot be read, the batch size is measured anew; if it cannot be written, the log says so.
    """
    ingredients = {"processor": cpu_name(), **engine.info.model_dump(include=set(RELEVANT_INFO))}
    name = f"batch-{fingerprint(ingredients)}"
    try:
        return MeasuredBatchSize.model_validate(cache.read_sidecar(name)).batch
    except ValidationError:  # there is none, or its content is damaged
        progress("measuring which batch suits a lane best")
    measured = choose_batch_size(lambda size: time_batch(engine, size), engine.info.lanes)
    rates = ", ".join(f"{size}: {rate:.3g}" for size, rate in measured.rates.items())
    log.info("batches of %d are preferred; images/s by batch: %s", measured.batch, rates)
    cache.write_sidecar(name, measured.model_dump())
    return measured.batch


def choose_batch_size(
    seconds: TimeBatch, lanes: int, within: float = SECONDS, clock: Callable[[], float] = time.monotonic
) -> MeasuredBatchSize:
    """Chooses the smallest batch within 3 % of the best.

    Sizes double until two in a row bring no gain, or until the next is not likely to be measured in time.

    Args:
        seconds: measures one batch of a size on every lane at once.
        lanes: number of lanes.
        within: seconds for all measurements together.
        clock: tells the time.
    """
    end = clock() + within
    best: dict[int, float] = {}
    without_gain = 0
    for size in SIZES:
        if best and clock() + 2 * best[size // 2] > end:
            break
        for _ in range(TURNS):
            taken = seconds(size)
            best[size] = min(taken, best.get(size, taken))
            if clock() + taken > end:
                break
        rate = size / best[size]
        gains = size == 1 or rate >= MIN_GAIN * max(n / best[n] for n in best if n < size)
        without_gain = 0 if gains else without_gain + 1
        if without_gain == 2:
            break
    rates = {size: lanes * size / taken for size, taken in best.items()}
    return MeasuredBatchSize(batch=_smallest_good(rates), rates=rates)


def warm_up(engine: Engine, within: float = WARM_UP_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
    """Runs batches of 1, 2, … of the usual shapes on all lanes, as far as `within` seconds reach.

    The first batch of a shape compiles its kernels, which takes longer than a single image does.
    """
    end, taken = clock() + within, 0.0
    for size in range(1, engine.info.preferred_batch + 1):
        if clock() + taken > end:
            return
        taken = time_batch(engine, size)


def _smallest_good(rates: Mapping[int, float]) -> int:
    best = max(rates.values())
    return min(size for size, rate in rates.items() if rate * MIN_GAIN >= best)
