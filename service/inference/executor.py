"""Runs batches on one lane, and finds the images to blame when a batch fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.arrays import Bytes, Floats, Indices
from model.engines.base import Engine, FatalEngineError
from model.masking import PAD
from service.errors import InferenceFailed, ServiceError
from service.inference.queue import DecoderOutput, Operation, QueueEntry, Result
from service.metrics import Metrics

log = logging.getLogger(__name__)
GREY = 128
"""The value of every pixel in the image that tests the engine after a failure."""


class BatchExecutor:
    """Runs the batches of one lane. Used by the thread of that lane alone."""

    def __init__(self, engine: Engine, lane: int, metrics: Metrics) -> None:
        """For the lane numbered `lane` of `engine`."""
        self._engine = engine
        self._lane = lane
        self._metrics = metrics

    def run(self, operation: Operation, batch: Sequence[QueueEntry]) -> tuple[list[Result | ServiceError], float]:
        """Runs a batch. If it fails, each half is tried again, so that only the images to blame fail.

        Returns:
            For each image its result or its failure, and the seconds that the batch took, with repetitions.

        Raises:
            FatalEngineError: the device is lost, or the engine fails on a plain grey image too.
        """
        self._metrics.batch_size.labels(operation).observe(len(batch))
        start = time.monotonic()
        try:
            results = self._infer(operation, batch)
        except FatalEngineError:
            raise
        except Exception as error:
            self._count_failure(batch, error)
            self._probe(operation, batch[0])
            results = self._bisect(operation, batch)
        else:
            if all(isinstance(result, ServiceError) for result in results):
                self._probe(operation, batch[0])
        return results, time.monotonic() - start

    def _infer(self, operation: Operation, batch: Sequence[QueueEntry]) -> list[Result | ServiceError]:
        """The results of a batch. A non-finite output fails only its own image."""
        patches = stack_padded([entry.patches for entry in batch], 0)
        visible_indices = stack_padded([entry.visible_indices for entry in batch], PAD)
        if operation == "reconstruct":
            pixels, error = self._engine.reconstruct(self._lane, patches, visible_indices)
            results: list[Result] = [DecoderOutput(*output) for output in zip(pixels, error, strict=True)]
            floats = error
        else:
            floats = self._encode(operation, patches, visible_indices)
            if operation == "tokens":  # the tokens of padding are cut off
                results = [output[: len(entry.visible_indices)] for output, entry in zip(floats, batch, strict=True)]
            else:
                results = list(floats)
        finite = _is_finite(floats)
        return [
            result if is_finite else self._not_finite(entry, len(batch))
            for result, is_finite, entry in zip(results, finite, batch, strict=True)
        ]

    def _encode(self, operation: Operation, patches: Bytes, visible_indices: Indices) -> Floats:
        call = self._engine.embed if operation == "embed" else self._engine.tokens
        return call(self._lane, patches, visible_indices)

    def _bisect(self, operation: Operation, batch: Sequence[QueueEntry]) -> list[Result | ServiceError]:
        """Runs the halves of a batch that has failed, down to the images to blame; a batch of one image runs again."""
        middle = (len(batch) + 1) // 2
        results: list[Result | ServiceError] = []
        for half in filter(len, (batch[:middle], batch[middle:])):
            try:
                results += self._infer(operation, half)
            except FatalEngineError:
                raise
            except Exception as error:
                self._count_failure(half, error)
                if len(half) > 1:
                    results += self._bisect(operation, half)
                else:
                    image = half[0].image
                    results.append(InferenceFailed(f"the engine failed on image {image}", image=image))
        return results

    def _probe(self, operation: Operation, entry: QueueEntry) -> None:
        """Runs a plain grey image after a failed batch: if that fails too, the engine is to blame.

        Raises:
            FatalEngineError: the engine fails on grey, or its output is not finite.
        """
        grey = np.full_like(entry.patches[None], GREY)
        visible_indices = entry.visible_indices[None]
        try:
            if operation == "reconstruct":
                _, floats = self._engine.reconstruct(self._lane, grey, visible_indices)
            else:
                floats = self._encode(operation, grey, visible_indices)
        except Exception as error:
            raise FatalEngineError(
                f"two batches in a row have failed, the second one of plain grey: {error}"
            ) from error
        if not np.isfinite(floats).all():
            raise FatalEngineError("the engine gives no finite numbers, not even for plain grey")

    def _not_finite(self, entry: QueueEntry, batch_size: int) -> InferenceFailed:
        self._metrics.engine_failures.labels("not_finite").inc()
        log.error("the engine gave numbers that are not finite for one image in a batch of %d", batch_size)
        return InferenceFailed(f"the engine gave no finite numbers for image {entry.image}", image=entry.image)

    def _count_failure(self, batch: Sequence[QueueEntry], error: Exception) -> None:
        self._metrics.engine_failures.labels("raised").inc()
        log.error("a batch of %d images has failed on lane %d: %s", len(batch), self._lane, error)


def stack_padded(arrays: Sequence[NDArray[Any]], padding: int) -> NDArray[Any]:
    """Stacks arrays [K, ...] to [B, K, ...] with the K of the longest; shorter arrays are filled with `padding`."""
    if len(arrays) == 1:
        return arrays[0][None]
    lengths = [len(array) for array in arrays]
    if min(lengths) == max(lengths):
        return np.stack(arrays)
    stacked = np.full((len(arrays), max(lengths), *arrays[0].shape[1:]), padding, arrays[0].dtype)
    for target, array in zip(stacked, arrays, strict=True):
        target[: len(array)] = array
    return stacked


def _is_finite(floats: Floats) -> NDArray[np.bool_]:
    """Whether each image's outputs, float32 [B, ...], are all finite: bool [B]. Pixels are bytes and always are."""
    return np.asarray(np.isfinite(floats).reshape(len(floats), -1).all(axis=1))
