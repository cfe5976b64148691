"""Measuring engines of one model beside each other, and keeping the choice that follows in the engine cache."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from model.engines.base import Engine, MeasureStep, ServedModel
from model.engines.cache import EngineCache
from model.engines.fixed_images import visible_quarter
from model.masking import all_indices

SECONDS = 3.0
"""Seconds after which measuring stops, if every engine has had a turn."""
TURNS = 10
MIN_TURNS = 3
"""Turns before measuring may stop because the choice is clear. The first turn is slow, and one may be disturbed."""
MIN_GAIN = 1.05
"""What is measured replaces the simpler choice only if it is faster by this factor."""
Measure = Callable[[], float]
"""Runs some images, and returns their seconds."""
Key = TypeVar("Key", bound=Hashable)
Choice = TypeVar("Choice", bound=BaseModel)


def measure_rates(
    seconds: Mapping[Key, Measure],
    images: int,
    within: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
    is_clear: Callable[[dict[Key, float]], bool] = lambda rates: False,
) -> dict[Key, float]:
    """Measures images per second of each engine, as the best of up to ten turns, which alternate between them.

    Args:
        seconds: by engine, a call that runs `images` images and returns their seconds, or core-seconds.
        images: number of images of all lanes together.
        within: seconds of the clock for all turns together; the first turn is always finished.
        clock: tells the time.
        is_clear: whether the choice is clear from such rates, so that no more turns are needed.
    """
    end = clock() + within
    best: dict[Key, float] = {}
    for turn in range(TURNS):
        start = clock()
        for key in list(seconds)[:: -1 if turn % 2 else 1]:
            taken = seconds[key]()
            best[key] = min(taken, best.get(key, taken))
        rates = {key: images / best[key] for key in seconds}
        if 2 * clock() - start > end or (turn + 1 >= MIN_TURNS and is_clear(rates)):
            break
    return rates


def time_batch(engine: Engine, size: int) -> float:
    """Seconds that all lanes at once take for a batch of whole images and one with a quarter of the patches visible."""
    config, lanes = engine.info.config, engine.info.lanes
    whole = np.random.default_rng(0).integers(0, 256, (size, config.num_patches, config.patch_dim), dtype=np.uint8)
    everything = np.repeat(all_indices(config.num_patches)[None], size, axis=0)
    visible_indices = visible_quarter(config, size)
    quarter = np.take_along_axis(whole, visible_indices[..., None], axis=1)
    start_line = threading.Barrier(lanes)

    def work(lane: int) -> float:
        start_line.wait()
        start = time.perf_counter()
        engine.embed(lane, whole, everything)
        engine.embed(lane, quarter, visible_indices)
        return time.perf_counter() - start

    with ThreadPoolExecutor(lanes) as pool:
        return max(pool.map(work, range(lanes)))


def finish_measurement(served: ServedModel) -> None:
    """Runs all steps of `served.measurement`, if there are any; nothing else may use the engine meanwhile.

    Raises:
        EngineError: the engine cannot run a batch.
    """
    if served.measurement is None:
        return
    served.measurement.prepare()
    with ThreadPoolExecutor(served.info.lanes) as pool:
        while (step := served.measurement.next_step()) is not None:
            start_line = threading.Barrier(len(step.lanes))
            step.record(max(pool.map(partial(_run_part, step, start_line), step.lanes)))


def read_choice(cache: EngineCache, name: str, kind: type[Choice]) -> Choice | None:
    """Reads a choice that `keep_choice` kept under `name`; None if there is none, or its content is damaged."""
    try:
        return kind.model_validate(cache.read_sidecar(name))
    except ValidationError:
        return None


def keep_choice(cache: EngineCache, name: str, choice: Choice) -> Choice:
    """Keeps `choice`, unless another process was faster: then its choice counts, lest two serve differently."""
    earlier = read_choice(cache, name, type(choice))
    if earlier is None:
        cache.write_sidecar(name, choice.model_dump())
    return earlier or choice


def _run_part(step: MeasureStep, start_line: threading.Barrier, lane: int) -> float:
    """Seconds of a lane in a step, which begins on all of its lanes at once: no thread runs two of them in turn."""
    start_line.wait()
    return step.run(lane)
