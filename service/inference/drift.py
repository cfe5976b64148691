"""Drift of the data: two figures of a sample of the served images, measured while no request waits for the engine.

Two figures need no labels. The masked loss is high for images of a kind that the decoder has not learned. The distance
of a vector from the whitening's centre is high for images that differ from those that the whitening was fitted on.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

from model.arrays import Bytes
from model.checkpoints.heads import POOL_INDEX, Heads
from model.checkpoints.native import Pooled
from model.engines.base import Engine, FatalEngineError
from model.masking import all_indices, choose_visible, removed_flags
from service.metrics import Metrics

log = logging.getLogger(__name__)
MASK_RATIO = 0.75
MAX_WAITING = 8
"""The largest number of samples that wait; a sample that finds no place is dropped."""
POOLS: tuple[Pooled, ...] = ("mean", "cls")
"""The pooled vectors by preference: the distance is that of the first one that can be whitened."""
Figure = Literal["distance", "loss"]


class NotFinite(Exception):
    """The engine gave numbers that are not finite."""


@dataclass(eq=False)
class Sample:
    """An image whose figures are not all measured yet."""

    patches: Bytes
    """uint8 [N, P]."""
    missing: list[Figure]


class DriftMonitor:
    """The samples that wait, and their measurement, one figure at a time: one engine call with one image.

    The caller holds a lock around `offer`, `take` and `give_back`, and lets one lane measure at a time.
    """

    def __init__(self, engine: Engine, heads: Heads, metrics: Metrics) -> None:
        """Measures what the model can: the loss with a decoder, the distance with a whitening."""
        self._engine = engine
        self._metrics = metrics
        config = engine.info.config
        self._pool = next((pool for pool in POOLS if pool in heads.whitening), None)
        self._whitening = None if self._pool is None else heads.whitening[self._pool]
        figures: list[Figure] = []
        if self._whitening is not None:
            figures.append("distance")
        if config.has_decoder:
            figures.append("loss")
        self._figures = tuple(figures)
        self._everything = all_indices(config.num_patches)
        self._waiting: deque[Sample] = deque()
        self._masks = 0
        if not figures:
            log.warning("DRIFT_SAMPLE measures nothing: the weights have neither a decoder nor a whitening")

    def offer(self, patches: Bytes) -> None:
        """Queues an image, uint8 [N, P], unless too many wait."""
        if not self._figures:
            return
        if len(self._waiting) >= MAX_WAITING:
            self._metrics.drift_samples.labels("dropped").inc()
            return
        self._waiting.append(Sample(patches, list(self._figures)))

    def take(self) -> Sample | None:
        """The next sample; None if none waits."""
        return self._waiting.popleft() if self._waiting else None

    def give_back(self, sample: Sample) -> None:
        """Queues a sample again, before all others, if it has figures that are missing."""
        if sample.missing:
            self._waiting.appendleft(sample)

    def measure(self, lane: int, sample: Sample) -> None:
        """Measures one missing figure of `sample` on a lane. A failure ends the sample.

        Raises:
            FatalEngineError: the device is lost.
        """
        figure = sample.missing.pop(0)
        try:
            if figure == "distance":
                self._metrics.drift_distance.observe(self._distance(lane, sample.patches))
            else:
                self._metrics.drift_loss.observe(self._loss(lane, sample.patches))
        except FatalEngineError:
            raise
        except Exception as error:
            sample.missing.clear()
            self._metrics.engine_failures.labels("not_finite" if isinstance(error, NotFinite) else "raised").inc()
            self._metrics.drift_samples.labels("failed").inc()
            log.error("the %s of a sampled image cannot be measured: %s", figure, error)
            return
        if not sample.missing:
            self._metrics.drift_samples.labels("measured").inc()

    def _distance(self, lane: int, patches: Bytes) -> float:
        """Distance of the whole image's vector from the centre, as the root of the mean square of whitened numbers.

        So it is about 1 for images like those that the whitening was fitted on.
        """
        assert self._whitening is not None and self._pool is not None
        vectors = self._engine.embed(lane, patches[None], self._everything[None])[0]
        return _require_finite(np.sqrt(np.square(self._whitening.apply(vectors[POOL_INDEX[self._pool]])).mean()))

    def _loss(self, lane: int, patches: Bytes) -> float:
        """Masked loss at a ratio of 0.75, with another mask for each sample."""
        self._masks += 1
        visible_indices = choose_visible("random", self._engine.info.config.grid, MASK_RATIO, self._masks)
        _, error = self._engine.reconstruct(lane, patches[None], visible_indices[None])
        return _require_finite(error[0][removed_flags(visible_indices, len(patches)).astype(bool)].mean())


def _require_finite(figure: np.floating) -> float:
    """`figure`, which must be finite.

    Raises:
        NotFinite: it is not.
    """
    if not np.isfinite(figure):
        raise NotFinite("it is not finite")
    return float(figure)
