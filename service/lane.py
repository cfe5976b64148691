"""One lane at work: runs batches, and finds out who is to blame when one fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from model.engines.base import Bytes, Engine, FatalEngineError, Indices
from service.errors import InferenceFailed, ServiceError
from service.metrics import Metrics

log = logging.getLogger(__name__)
Operation = Literal["embed", "tokens", "reconstruct"]
Row = Any
"""What one image gets: an array, or a pair of arrays for reconstruct."""


class Work(Protocol):
    """One image of a batch."""

    @property
    def index(self) -> int:
        """Its number within its request."""

    @property
    def patches(self) -> Bytes:
        """Uint8 [K, P], all N for reconstruct."""

    @property
    def positions(self) -> Indices:
        """Int32 [K]."""


class LaneRunner:
    """Runs the batches of one lane: finds out who is to blame when one fails."""

    def __init__(self, engine: Engine, lane: int, metrics: Metrics) -> None:
        """For the lane numbered `lane` of `engine`."""
        self._engine = engine
        self._lane = lane
        self._metrics = metrics

    def run(self, operation: Operation, batch: Sequence[Work]) -> tuple[list[Row | ServiceError], float]:
        """One result an item, and the seconds it took.

        Raises:
            FatalEngineError: the device is lost, or the engine fails on harmless input too.
        """
        self._metrics.batch_size.labels(operation).observe(len(batch))
        start = time.monotonic()
        try:
            results = self._checked(operation, batch)
        except FatalEngineError:
            raise
        except Exception as error:
            self._failed(batch, error)
            self._probe(operation, batch[0])
            results = self._halves(operation, batch, error)
        return results, time.monotonic() - start

    def _halves(self, operation: Operation, batch: Sequence[Work], error: Exception) -> list[Row | ServiceError]:
        """A batch has failed: each half alone, down to the image that is to blame."""
        if len(batch) == 1:
            index = batch[0].index
            return [InferenceFailed(f"the engine failed on image {index}: {error}", image=index)]
        results: list[Row | ServiceError] = []
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            try:
                results += self._checked(operation, half)
            except FatalEngineError:
                raise
            except Exception as half_error:
                self._failed(half, half_error)
                results += self._halves(operation, half, half_error)
        return results

    def _probe(self, operation: Operation, item: Work) -> None:
        """After a failed batch: a harmless one of grey. If that fails too, it is the engine and not the images."""
        grey = np.full_like(item.patches[None], 128)
        try:
            self._call(operation, grey, item.positions[None])
        except Exception as error:
            raise FatalEngineError(
                f"two batches in a row have failed, the second one of plain grey: {error}"
            ) from error

    def _checked(self, operation: Operation, batch: Sequence[Work]) -> list[Row | ServiceError]:
        """Rows of the batch; one with a number that is none becomes a failure of its image alone."""
        patches = np.stack([item.patches for item in batch])
        positions = np.stack([item.positions for item in batch])
        outputs = self._call(operation, patches, positions)
        floats = outputs[-1]  # vectors, or the error of each patch: pixels are bytes and always finite
        finite = np.isfinite(floats).reshape(len(batch), -1).all(axis=1)
        results: list[Row | ServiceError] = []
        for row, item in enumerate(batch):
            if finite[row]:
                results.append(outputs[0][row] if len(outputs) == 1 else tuple(output[row] for output in outputs))
            else:
                self._metrics.engine_failures.labels("not_finite").inc()
                log.error("the engine gave numbers that are not finite for one image of %d", len(batch))
                results.append(
                    InferenceFailed(f"the engine gave no finite numbers for image {item.index}", image=item.index)
                )
        return results

    def _call(self, operation: Operation, patches: Bytes, positions: Indices) -> tuple[NDArray[Any], ...]:
        if operation == "embed":
            return (self._engine.embed(self._lane, patches, positions),)
        if operation == "tokens":
            return (self._engine.tokens(self._lane, patches, positions),)
        return self._engine.reconstruct(self._lane, patches, positions)

    def _failed(self, batch: Sequence[Work], error: Exception) -> None:
        self._metrics.engine_failures.labels("raised").inc()
        log.error("a batch of %d has failed on lane %d: %s", len(batch), self._lane, error)
