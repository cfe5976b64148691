"""The seconds of batches by size: which are measured, what is kept in the engine cache, and the batch that follows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from pydantic import ValidationError

from model.config import MAEConfig
from model.engines.base import EngineInfo
from model.engines.batch_seconds import BatchCurves, BatchSeconds, Shape
from model.engines.cache import EngineCache, fingerprint
from model.engines.cpu import cpu_name

SIZES = (1, 2, 4, 8, 16)
TURNS = 6
MIN_TURNS = 2
"""Turns without which a size of several images does not count: the first turn compiles kernels, so it is slow."""
SECONDS = 6.0
"""Seconds of all batches together, after which no turn begins."""
BATCH_SECONDS = 0.25
"""A batch of several images that takes longer is not measured: a request may have to wait for its end."""
MIN_GAIN = 1.03
"""A larger batch keeps each image in it waiting, so it must be faster by this factor."""
RELEVANT_INFO = ("entry", "precision", "computes", "lanes", "threads_per_lane", "versions")
"""Fields of `EngineInfo` that the seconds depend on."""
Mode = Literal["lanes", "lone", "joined"]
"""Where batches run: one on every lane at once, one on a lane while the others are idle, or one on the joined lane."""


class Batch(NamedTuple):
    """A batch to measure."""

    shape: Shape
    mode: Mode
    size: int


class CurvePlan:
    """The order in which batches are measured.

    Every size has up to `TURNS` turns, of which the fastest counts: neighbours on the host slow some down. A turn
    measures all shapes and modes, and every other one goes backwards, so that a disturbance does not hit one of them
    alone. Single images on the lanes come again in the turns of all larger sizes: these are compared with them, and it
    takes little to disturb two lanes for the time of all turns of one size. Sizes double until two in a row bring a
    shape no gain, until a batch takes too long, or until the time is over.
    """

    def __init__(self, shapes: tuple[Shape, ...], joined: bool, max_size: int = SIZES[-1]) -> None:
        """Nothing is measured yet.

        Args:
            shapes: the shapes to measure.
            joined: whether there is a joined lane to measure.
            max_size: the largest number of images per batch.
        """
        self._shapes = shapes
        self._joined = joined
        self._sizes = [size for size in SIZES if size <= max_size]
        self._best: dict[Batch, float] = {}
        self._turns: dict[int, int] = {}
        """Finished turns by size."""
        self._spent_s = 0.0
        self._order = self._batches()
        self.current: Batch | None = next(self._order)
        """The batch to measure now; None after the last one."""

    def record(self, seconds: float) -> None:
        """Takes the seconds of the current batch, and goes on to the next one."""
        assert self.current is not None
        self._best[self.current] = min(seconds, self._best.get(self.current, seconds))
        self._spent_s += seconds
        self.current = next(self._order, None)

    def curves(self) -> BatchCurves:
        """The seconds of all sizes that had enough turns, at least those of one image."""
        return BatchCurves(
            shapes={
                shape: BatchSeconds(
                    lone=self._best[Batch(shape, "lone", 1)],
                    lanes=self._curve(shape, "lanes"),
                    joined=self._curve(shape, "joined"),
                )
                for shape in self._shapes
            }
        )

    def _batches(self) -> Iterator[Batch]:
        for size in self._sizes:
            modes: tuple[Mode, ...] = ("lanes", "lone", "joined") if size == 1 else ("lanes", "joined")
            turn = [
                Batch(shape, mode, size)
                for shape in self._shapes
                if size == 1 or self._pays(shape, size)
                for mode in modes
                if self._joined or mode != "joined"
            ]
            if size > 1:
                turn = [Batch(shape, "lanes", 1) for shape in dict.fromkeys(batch.shape for batch in turn)] + turn
            for number in range(TURNS):
                ahead = max(1, MIN_TURNS - number) if size > 1 else 1
                is_first = size == 1 and number == 0  # which is measured however slow
                if not is_first and self._spent_s + ahead * sum(map(self._expect, turn)) > SECONDS:
                    return
                yield from turn[:: -1 if number % 2 else 1]
                self._turns[size] = number + 1

    def _pays(self, shape: Shape, size: int) -> bool:
        """Whether batches of `size` may be faster per image than smaller ones, and do not take too long."""
        batch = Batch(shape, "lanes", size)
        if Batch(shape, "lanes", size // 2) not in self._best or self._expect(batch) > BATCH_SECONDS:
            return False
        without_gain = 0
        for measured in sorted(self._curve(shape, "lanes"))[1:]:
            gains = any(_gains(self._curve(shape, mode), measured) for mode in ("lanes", "joined"))
            without_gain = 0 if gains else without_gain + 1
        return without_gain < 2

    def _expect(self, batch: Batch) -> float:
        """Seconds of a batch: those measured, or twice those of half the size."""
        return self._best[batch] if batch in self._best else 2 * self._best[batch._replace(size=batch.size // 2)]

    def _curve(self, shape: Shape, mode: Mode) -> dict[int, float]:
        return {
            batch.size: seconds
            for batch, seconds in self._best.items()
            if (batch.shape, batch.mode) == (shape, mode)
            if batch.size == 1 or self._turns.get(batch.size, 0) >= MIN_TURNS
        }


def shapes_of(config: MAEConfig) -> tuple[Shape, ...]:
    """The shapes that a model has."""
    shapes: tuple[Shape, ...] = ("embed whole", "embed quarter", "reconstruct quarter")
    return shapes[: 2 + config.has_decoder]


def choose_batch(curves: BatchCurves) -> int:
    """The largest batch that is worth it: of each shape, the smallest size within 3 % of the most images per second."""
    return max(_smallest_good(seconds.lanes) for seconds in curves.shapes.values())


def curves_name(info: EngineInfo, joined: bool, max_size: int) -> str:
    """The name of the curves in the engine cache: a fingerprint of all that they depend on.

    Args:
        info: describes the engine.
        joined: whether it is to have a joined lane.
        max_size: the largest number of images per batch.
    """
    ingredients = {
        "processor": cpu_name(),
        **info.model_dump(include=set(RELEVANT_INFO)),
        "joined": joined,
        "sizes": [size for size in SIZES if size <= max_size],
    }
    return f"curves-{fingerprint(ingredients)}"


def read_curves(cache: EngineCache, name: str, shapes: tuple[Shape, ...]) -> BatchCurves | None:
    """Reads the curves that were kept under `name`; None if there are none, or the file is damaged."""
    try:
        curves = BatchCurves.model_validate(cache.read_sidecar(name))
    except ValidationError:
        return None
    is_whole = set(curves.shapes) == set(shapes) and all(map(_is_whole, curves.shapes.values()))
    return curves if is_whole else None


def without_joined(curves: BatchCurves) -> BatchCurves:
    """The same curves for an engine that has no joined lane."""
    return BatchCurves(
        shapes={shape: seconds.model_copy(update={"joined": {}}) for shape, seconds in curves.shapes.items()}
    )


def has_joined(curves: BatchCurves) -> bool:
    """Whether a joined lane was measured."""
    return all(seconds.joined for seconds in curves.shapes.values())


def _gains(curve: dict[int, float], size: int) -> bool:
    smaller = [n / s for n, s in curve.items() if n < size]
    return size in curve and bool(smaller) and size / curve[size] >= MIN_GAIN * max(smaller)


def _smallest_good(curve: dict[int, float]) -> int:
    best = max(size / seconds for size, seconds in curve.items())
    return min(size for size, seconds in curve.items() if MIN_GAIN * size / seconds >= best)


def _is_whole(seconds: BatchSeconds) -> bool:
    curves = (seconds.lanes, seconds.joined) if seconds.joined else (seconds.lanes,)
    numbers = [seconds.lone, *(s for curve in curves for s in curve.values())]
    return all(1 in curve and set(curve) <= set(SIZES) for curve in curves) and all(
        math.isfinite(number) and number > 0 for number in numbers
    )
