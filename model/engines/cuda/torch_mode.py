"""The mode in which torch runs the graphs on a GPU: which modes may serve, and which of them is the fastest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from model.engines.base import Engine, TorchMode
from model.engines.measure import MIN_GAIN, SECONDS, measure_rates, time_batch

SIMPLEST_FIRST: tuple[TorchMode, ...] = ("eager", "cuda graphs", "compile")


def allowed_modes(cuda_graphs: bool | None) -> tuple[TorchMode, ...]:
    """The modes that the setting CUDA_GRAPHS allows: it names one, or leaves the choice to measurement."""
    if cuda_graphs is None:
        return SIMPLEST_FIRST
    return ("cuda graphs",) if cuda_graphs else ("eager",)


def measure_modes(engines: Mapping[TorchMode, Engine]) -> dict[TorchMode, dict[int, float]]:
    """Images per second of each engine by batch size, for single images and for the largest batches.

    All lanes run at once, whole images and then a quarter of the patches; the engines take turns.
    """
    engine = next(iter(engines.values()))
    sizes = sorted({1, engine.info.preferred_batch})
    rates: dict[TorchMode, dict[int, float]] = {mode: {} for mode in engines}
    for size in sizes:
        images = 2 * size * engine.info.lanes
        seconds = {mode: partial(time_batch, each, size) for mode, each in engines.items()}
        for mode, rate in measure_rates(seconds, images, SECONDS / len(sizes)).items():
            rates[mode][size] = rate
    return rates


def choose_mode(rates: Mapping[TorchMode, Mapping[int, float]]) -> TorchMode:
    """Chooses the simplest mode, or the one that beats all simpler ones by 5 %.

    Args:
        rates: images per second by mode and batch size, the same sizes for all. The geometric mean over the sizes
            counts: a single image and a full batch matter alike.
    """
    means = {mode: math.exp(math.fsum(map(math.log, by.values())) / len(by)) for mode, by in rates.items()}
    first, *others = (mode for mode in SIMPLEST_FIRST if mode in means)
    best = first
    for mode in others:
        if means[mode] >= MIN_GAIN * means[best]:
            best = mode
    return best
