"""Checks the joined lane and measures the seconds of batches, in short steps after the engine is ready."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.engines.base import Engine, EngineBuildError, MeasureStep
from model.engines.batch_seconds import BatchCurves, Shape
from model.engines.cache import EngineCache
from model.engines.fixed_images import IMAGES, fixed_patches, visible_quarter
from model.engines.openvino.batch_curves import (
    SIZES,
    Batch,
    CurvePlan,
    choose_batch,
    curves_name,
    has_joined,
    read_curves,
    shapes_of,
    without_joined,
)
from model.engines.openvino.joined_lane import JoinedLaneCheck, Outputs
from model.masking import all_indices

log = logging.getLogger(__name__)
STATUS = Path("/proc/self/status")
NO_JOINED_LANE = "there is no joined lane for lone images"


class JoinableEngine(Engine, Protocol):
    """An engine that can have a joined lane."""

    def join_lanes(self) -> None:
        """Makes the joined lane, which gets the number `info.lanes`; raises EngineBuildError if it cannot."""

    def drop_joined_lane(self) -> None:
        """Frees the joined lane, if there is one."""


class OpenVINOMeasurement:
    """The `CurveMeasurement` of an engine by OpenVINO."""

    def __init__(
        self, engine: JoinableEngine, cache: EngineCache, max_batch: int | None, check: JoinedLaneCheck | None
    ) -> None:
        """Reads the curves that an earlier start has kept, if any: `engine.info` has them from now on.

        Args:
            engine: the engine, which is ready.
            cache: keeps the curves.
            max_batch: the operator's largest batch; None for the measured one.
            check: checks the joined lane; None if there is to be none.
        """
        self.curves: BatchCurves | None = None
        self._engine, self._cache, self._max_batch, self._check = engine, cache, max_batch, check
        self._max_size = min(max_batch or SIZES[-1], SIZES[-1])
        self._name = curves_name(engine.info, check is not None, self._max_size)
        self._kept = read_curves(cache, self._name, shapes_of(engine.info.config))
        self._joins = check is not None and (self._kept is None or has_joined(self._kept))
        """Whether there is to be a joined lane: not if an earlier start has found that it must not serve."""
        self._keeps = True
        self._prepared = False
        self._mb_before: float | None = None
        self._joined_mb: float | None = None
        self._images = FixedImages(engine)
        self._steps = self._all_steps()
        self._step: MeasureStep | None = None
        if self._kept is not None:
            self._describe(without_joined(self._kept))
            if check is not None and not self._joins:
                log.warning("%s: an earlier start has refused it (%s.json)", NO_JOINED_LANE, self._name)

    @property
    def is_needed(self) -> bool:
        """Whether there is anything to measure, or a joined lane to make."""
        return self._kept is None or self._joins

    def prepare(self) -> None:
        """See `CurveMeasurement.prepare`."""
        if self._prepared:
            return
        self._prepared = True
        self._images.draw()
        if self._joins:
            self._mb_before = _resident_mb()
            try:
                self._engine.join_lanes()
            except (EngineBuildError, MemoryError, RuntimeError) as error:  # OpenVINO raises the latter two
                self._keeps = False  # the next start may succeed
                self._refuse(str(error) or type(error).__name__)

    def next_step(self) -> MeasureStep | None:
        """See `CurveMeasurement.next_step`."""
        if self._step is None and self.curves is None:
            self.prepare()
            self._step = next(self._steps, None)
        return self._step

    def abandon(self) -> None:
        """See `CurveMeasurement.abandon`."""
        if self.curves is None and self._joins:
            self._refuse("the seconds of batches are not known")

    def _all_steps(self) -> Iterator[MeasureStep]:
        if self._joins:
            yield from self._check_steps()
        curves = self._kept
        if curves is None:
            plan = CurvePlan(shapes_of(self._engine.info.config), self._joins, self._max_size)
            while plan.current is not None:
                yield self._measure_step(plan, plan.current)
            curves = plan.curves()
            if self._check is not None and self._check.refusal is not None and self._joins:
                self._refuse(self._check.refusal)
            if self._keeps:
                kept = curves if self._joins else without_joined(curves)
                self._cache.write_sidecar(self._name, kept.model_dump(mode="json"))
        self.curves = curves if self._joins else without_joined(curves)
        self._describe(self.curves)
        self._check = None  # its outputs of the fixed images are not needed any more

    def _check_steps(self) -> Iterator[MeasureStep]:
        check, joined_lane = self._check, self._engine.info.lanes
        assert check is not None
        for image in range(IMAGES):
            for shape in shapes_of(self._engine.info.config):

                def run(lane: int, shape: Shape = shape, image: int = image) -> float:
                    seconds, outputs = self._images.run(lane, shape, np.array([image]))
                    check.add(image, outputs)
                    return seconds

                yield self._step_of((joined_lane,), shape, 1, run, lambda seconds: None)
        check.finish()
        if check.refusal is not None:
            self._refuse(check.refusal)
        elif self._mb_before is not None and (now := _resident_mb()) is not None:
            self._joined_mb = round(max(0.0, now - self._mb_before), 1)

    def _measure_step(self, plan: CurvePlan, batch: Batch) -> MeasureStep:
        count = self._engine.info.lanes
        lanes = {"lanes": tuple(range(count)), "lone": (0,), "joined": (count,)}[batch.mode]
        images = np.arange(batch.size) % IMAGES

        def run(lane: int) -> float:
            seconds, outputs = self._images.run(lane, batch.shape, images)
            if batch.mode == "joined" and self._check is not None:
                self._check.compare(images, outputs)
            return seconds

        return self._step_of(lanes, batch.shape, batch.size, run, plan.record)

    def _step_of(
        self,
        lanes: tuple[int, ...],
        shape: Shape,
        images: int,
        run: Callable[[int], float],
        record: Callable[[float], None],
    ) -> MeasureStep:
        def record_and_go_on(seconds: float) -> None:
            record(seconds)
            self._step = next(self._steps, None)

        is_reconstruction = shape == "reconstruct quarter"
        return MeasureStep(lanes, "reconstruct" if is_reconstruction else "embed", images, run, record_and_go_on)

    def _refuse(self, reason: str) -> None:
        self._joins = False
        self._engine.drop_joined_lane()
        log.warning("%s: %s", NO_JOINED_LANE, reason)

    def _describe(self, curves: BatchCurves) -> None:
        batch = self._max_batch or choose_batch(curves)
        joined = has_joined(curves)
        changes = {
            "batch_curves": curves,
            "preferred_batch": batch,
            "joined": joined,
            "joined_mb": self._joined_mb if joined else None,
        }
        self._engine.info = self._engine.info.model_copy(update=changes)
        whole = curves.shapes["embed whole"]
        log.info(
            "batches of %d are preferred; ms by batch of whole images: on each lane %s; one image on a lone lane %.3g; "
            "on the joined lane %s",
            batch,
            _in_ms(whole.lanes),
            1000 * whole.lone,
            _in_ms(whole.joined) or "none",
        )


class FixedImages:
    """Runs the fixed images in every shape."""

    def __init__(self, engine: Engine) -> None:
        """Draws no images yet."""
        self._engine = engine
        self._patches = np.empty(0, dtype=np.uint8)

    def draw(self) -> None:
        """Draws the images. Call this before `run`."""
        self._patches = fixed_patches(self._engine.info.config)

    def run(self, lane: int, shape: Shape, images: NDArray[np.int64]) -> tuple[float, Outputs]:
        """Seconds and outputs of a batch of fixed images, which are named by their numbers."""
        config = self._engine.info.config
        patches, quarter = self._patches[images], visible_quarter(config, IMAGES)[images]
        if shape == "reconstruct quarter":
            start = time.perf_counter()
            pixels, error = self._engine.reconstruct(lane, patches, quarter)
            return time.perf_counter() - start, {"pixels": pixels, "error": error}
        name, visible = "whole", np.repeat(all_indices(config.num_patches)[None], len(images), axis=0)
        if shape == "embed quarter":
            name, visible = "masked", quarter
            patches = np.take_along_axis(patches, quarter[..., None], axis=1)
        start = time.perf_counter()
        pooled = self._engine.embed(lane, patches, visible)
        return time.perf_counter() - start, {name: pooled}


def _in_ms(curve: dict[int, float]) -> str:
    return ", ".join(f"{size}: {1000 * seconds:.3g}" for size, seconds in curve.items())


def _resident_mb(status: Path = STATUS) -> float | None:
    """Anonymous memory of this process in MB; None where the system does not tell."""
    lines = status.read_text().splitlines() if status.is_file() else []
    sizes = (line.split()[1] for line in lines if line.startswith("RssAnon:"))
    return next((int(kib) * 1024 / 1e6 for kib in sizes), None)
