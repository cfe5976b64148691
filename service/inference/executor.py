"""One lane at work: runs batches, and finds out who is to blame when one fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from model.arrays import Bytes, Indices
from model.engines.base import Engine, FatalEngineError
from model.masking import PAD
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
    def visible_indices(self) -> Indices:
        """Int32 [K]."""


class BatchExecutor:
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
            results = self._halves(operation, batch)
        else:
            if all(isinstance(result, ServiceError) for result in results):
                self._probe(operation, batch[0])
        return results, time.monotonic() - start

    def _halves(self, operation: Operation, batch: Sequence[Work]) -> list[Row | ServiceError]:
        """A batch has failed: each half again, down to the image that is to blame; a lone image once more."""
        middle = (len(batch) + 1) // 2
        results: list[Row | ServiceError] = []
        for half in filter(len, (batch[:middle], batch[middle:])):
            try:
                results += self._checked(operation, half)
            except FatalEngineError:
                raise
            except Exception as error:
                self._failed(half, error)
                if len(half) > 1:
                    results += self._halves(operation, half)
                else:
                    index = half[0].index
                    results.append(InferenceFailed(f"the engine failed on image {index}", image=index))
        return results

    def _probe(self, operation: Operation, item: Work) -> None:
        """After a failed batch: a harmless one of grey. If that fails too, it is the engine and not the images."""
        grey = np.full_like(item.patches[None], 128)
        try:
            finite = _finite_rows(self._call(operation, grey, item.visible_indices[None]), 1)
        except Exception as error:
            raise FatalEngineError(
                f"two batches in a row have failed, the second one of plain grey: {error}"
            ) from error
        if not finite.all():
            raise FatalEngineError("the engine gives no finite numbers, not even for plain grey")

    def _checked(self, operation: Operation, batch: Sequence[Work]) -> list[Row | ServiceError]:
        """Rows of the batch; one with a number that is none becomes a failure of its image alone."""
        patches = stacked([item.patches for item in batch], 0)
        visible_indices = stacked([item.visible_indices for item in batch], PAD)
        outputs = self._call(operation, patches, visible_indices)
        finite = _finite_rows(outputs, len(batch))
        results: list[Row | ServiceError] = []
        for row, item in enumerate(batch):
            if finite[row] and operation == "tokens":
                results.append(outputs[0][row, : len(item.visible_indices)])
            elif finite[row]:
                results.append(outputs[0][row] if len(outputs) == 1 else tuple(output[row] for output in outputs))
            else:
                self._metrics.engine_failures.labels("not_finite").inc()
                log.error("the engine gave numbers that are not finite for one image of %d", len(batch))
                results.append(
                    InferenceFailed(f"the engine gave no finite numbers for image {item.index}", image=item.index)
                )
        return results

    def _call(self, operation: Operation, patches: Bytes, visible_indices: Indices) -> tuple[NDArray[Any], ...]:
        if operation == "embed":
            return (self._engine.embed(self._lane, patches, visible_indices),)
        if operation == "tokens":
            return (self._engine.tokens(self._lane, patches, visible_indices),)
        return self._engine.reconstruct(self._lane, patches, visible_indices)

    def _failed(self, batch: Sequence[Work], error: Exception) -> None:
        self._metrics.engine_failures.labels("raised").inc()
        log.error("a batch of %d has failed on lane %d: %s", len(batch), self._lane, error)


def stacked(arrays: Sequence[NDArray[Any]], filler: int) -> NDArray[Any]:
    """Arrays [K, ...] as one, [B, K, ...]; shorter ones are filled up to the longest."""
    if len(arrays) == 1:
        return arrays[0][None]
    lengths = [len(array) for array in arrays]
    if min(lengths) == max(lengths):
        return np.stack(arrays)
    filled = np.full((len(arrays), max(lengths), *arrays[0].shape[1:]), filler, arrays[0].dtype)
    for row, array in zip(filled, arrays, strict=True):
        row[: len(array)] = array
    return filled


def _finite_rows(outputs: tuple[NDArray[Any], ...], count: int) -> NDArray[np.bool_]:
    """Which of `count` rows hold nothing but finite numbers."""
    floats = outputs[-1]  # vectors, or the error of each patch: pixels are bytes and always finite
    finite: NDArray[np.bool_] = np.isfinite(floats).reshape(count, -1).all(axis=1)
    return finite
