"""Times at which images arrive: random, at a rate that is constant, follows the day, or has bursts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
"""Seconds since the start of the simulation, float64 [images]."""
Rate = Callable[[Times], Times]
"""Images per second at these times, float64 [times]."""
BLOCK_S = 60.0


def constant(images_per_s: float) -> Rate:
    """The same rate at all times."""
    return lambda times: np.full_like(times, images_per_s)


def day(mean: float, share: float = 0.6, day_s: float = 86_400) -> Rate:
    """A day's curve: lowest at its start, highest at noon, from (1 - share) to (1 + share) times the mean."""
    return lambda times: mean * (1 - share * np.cos(2 * np.pi * times / day_s))


def bursts(usual: float, high: float, every_s: float, length_s: float) -> Rate:
    """The usual rate, and at the end of each `every_s` seconds a burst of `length_s` seconds with the high rate."""
    return lambda times: np.where(times % every_s >= every_s - length_s, high, usual)


def arrivals(rate: Rate, seconds: float, rng: np.random.Generator) -> Iterator[Times]:
    """Arrivals of a Poisson process, block by block: those of the highest rate of a block, thinned."""
    for start in np.arange(0, seconds, BLOCK_S):
        length = min(BLOCK_S, seconds - start)
        highest = float(rate(start + np.linspace(0, length, 601)).max())
        times = start + np.sort(rng.random(rng.poisson(highest * length))) * length
        yield times[rng.random(len(times)) * highest < rate(times)]
