"""Which precision `PRECISION=auto` comes to: measured once on a kind of processor, and kept in the engine cache.

What lies closer to the model is preferred, and every precision here has passed its gate before it is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from model.engines.base import Engine, MeasuredPrecision, Precision
from model.engines.cache import EngineCache
from model.engines.openvino.batch_size import seconds_of

CLOSEST_FIRST: tuple[Precision, ...] = ("fp32", "bf16", "int8")
SECONDS = 3.0
"""Measuring stops by then, if every precision has had a turn."""
TURNS = 10
WORTH = 1.05
"""What lies further from the model has to be faster by this."""
Measure = Callable[[], float]


def choose(rates: Mapping[Precision, float]) -> Precision:
    """The precision to serve in: float32, or what beats all that lie closer to the model by 5 %.

    Args:
        rates: images a core-second of those that have passed their gates, float32 among them.
    """
    best: Precision = "fp32"
    for precision in CLOSEST_FIRST:
        if precision in rates and rates[precision] >= WORTH * rates[best]:
            best = precision
    return best


def measure(
    seconds: Mapping[Precision, Measure],
    images: int,
    within: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> dict[Precision, float]:
    """Images a core-second of each precision: its best of up to ten turns, taken alternately, so all meet the same.

    Args:
        seconds: by precision, what runs `images` images and says how many core-seconds they took.
        images: of all lanes together.
        within: seconds of the clock for everything; one turn is measured however slow.
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


def core_seconds_of(engine: Engine) -> float:
    """Core-seconds of one image on every lane, whole and seen through a quarter.

    Not the clock's: a busy neighbour or a quota that is used up would decide the choice by accident.
    """
    before = time.process_time()
    seconds_of(engine, 1)
    return time.process_time() - before


def read_choice(cache: EngineCache, name: str) -> MeasuredPrecision | None:
    """What was noted under that name; None if nothing was, or nothing of ours."""
    try:
        return MeasuredPrecision.model_validate(cache.read_note(name))
    except ValidationError:
        return None


def keep_choice(cache: EngineCache, name: str, found: MeasuredPrecision) -> MeasuredPrecision:
    """Notes `found`, unless another process was faster: then what that one has noted, lest two serve differently."""
    earlier = read_choice(cache, name)
    if earlier is None:
        cache.write_note(name, found.model_dump())
    return earlier or found
