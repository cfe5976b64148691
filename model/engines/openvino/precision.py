"""The precision that `PRECISION=auto` chooses: measured once on a kind of CPU, and kept in the engine cache.

Precisions that lie closer to the model are preferred, and every engine has passed its parity check before it is
measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from model.engines.base import Engine, MeasuredPrecision, Precision
from model.engines.cache import EngineCache
from model.engines.openvino.batch_size import time_batch

CLOSEST_FIRST: tuple[Precision, ...] = ("fp32", "bf16", "int8")
SECONDS = 3.0
"""Seconds after which measuring stops, if every precision has had a turn."""
TURNS = 10
MIN_GAIN = 1.05
"""A precision that lies further from the model must be faster by this factor."""
Measure = Callable[[], float]
"""Runs some images, and returns their core-seconds."""


def choose_precision(rates: Mapping[Precision, float]) -> Precision:
    """Chooses float32, or the precision that beats all that lie closer to the model by 5 %.

    Args:
        rates: images per core-second of those that passed their parity checks, float32 among them.
    """
    best: Precision = "fp32"
    for precision in CLOSEST_FIRST:
        if precision in rates and rates[precision] >= MIN_GAIN * rates[best]:
            best = precision
    return best


def measure_rates(
    seconds: Mapping[Precision, Measure],
    images: int,
    within: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> dict[Precision, float]:
    """Measures images per core-second of each precision, as the best of up to ten turns, which alternate between them.

    Args:
        seconds: by precision, a call that runs `images` images and returns their core-seconds.
        images: number of images of all lanes together.
        within: seconds of the clock for all turns together; the first turn is always finished.
        clock: tells the time.
    """
    end = clock() + within
    best: dict[Precision, float] = {}
    for turn in range(TURNS):
        start = clock()
        for precision in list(seconds)[:: -1 if turn % 2 else 1]:
            taken = seconds[precision]()
            best[precision] = min(taken, best.get(precision, taken))
        if 2 * clock() - start > end:
            break
    return {precision: images / best[precision] for precision in seconds}


def core_seconds(engine: Engine) -> float:
    """Core-seconds for one image on every lane, once whole and once with a quarter of its patches visible.

    CPU time, not the clock's: a busy neighbour or a quota that is used up would decide the choice by accident.
    """
    before = time.process_time()
    time_batch(engine, 1)
    return time.process_time() - before


def read_choice(cache: EngineCache, name: str) -> MeasuredPrecision | None:
    """Reads a choice that `keep_choice` kept under `name`; None if there is none, or its content is damaged."""
    try:
        return MeasuredPrecision.model_validate(cache.read_sidecar(name))
    except ValidationError:
        return None


def keep_choice(cache: EngineCache, name: str, choice: MeasuredPrecision) -> MeasuredPrecision:
    """Keeps `choice`, unless another process was faster: then its choice counts, lest two serve differently."""
    earlier = read_choice(cache, name)
    if earlier is None:
        cache.write_sidecar(name, choice.model_dump())
    return earlier or choice
