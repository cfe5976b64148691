"""The precision that `PRECISION=auto` chooses: measured once on a kind of CPU, and kept in the engine cache.

Precisions that lie closer to the model are preferred, and every engine has passed its parity check before it is
measured.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import product

from model.engines.base import Engine, Precision
from model.engines.measure import MIN_GAIN, time_batch

CLOSEST_FIRST: tuple[Precision, ...] = ("fp32", "bf16", "int8")
DOUBT = 1.15
"""The factor by which the rates of a few turns may be wrong."""


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


def is_clear_choice(rates: Mapping[Precision, float]) -> bool:
    """Whether the choice is the same if every rate is wrong by `DOUBT`, in either direction."""
    ranges = product(*((rate / DOUBT, rate * DOUBT) for rate in rates.values()))
    return len({choose_precision(dict(zip(rates, corner, strict=True))) for corner in ranges}) == 1


def core_seconds(engine: Engine) -> float:
    """Core-seconds for one image on every lane, once whole and once with a quarter of its patches visible.

    CPU time, not the clock's: a busy neighbour or a quota that is used up would decide the choice by accident.
    """
    before = time.process_time()
    time_batch(engine, 1)
    return time.process_time() - before
