"""The results of one request, until all have come."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from service.errors import ServiceError
from service.inference.queue import QueueEntry, Result


class PendingResults:
    """The `ResultSink` of a request in this process: a future of all its results."""

    def __init__(
        self,
        count: int,
        skipped: dict[int, ServiceError] | None = None,
        passes: int = 1,
        known: Mapping[int, Sequence[Result]] | None = None,
    ) -> None:
        """Waits for the results of `count` images with `passes` passes each.

        Args:
            count: number of images.
            skipped: that of `ImageRequest`.
            passes: number of passes of each image.
            known: the results of images that need not be computed, by the index of the image.
        """
        self.queue_s = 0.0
        """Seconds in the queue, of the slowest image."""
        self.infer_s = 0.0
        """Seconds in a batch, of the slowest image."""
        self._passes = passes
        self._results: list[Result | None] = [None] * (count * passes)
        self._skipped = skipped
        self._missing = [0 if index in (skipped or ()) else passes for index in range(count)]
        """The number of results that have not come, by image."""
        self._known = known or {}
        for index, results in self._known.items():
            self._results[index * passes : (index + 1) * passes] = results
            self._missing[index] = 0
        self._future: asyncio.Future[list[Result]] = asyncio.get_running_loop().create_future()
        if not any(self._missing):
            self._finish()

    async def wait(self) -> list[Result]:
        """Returns the results in the order of the images and their passes.

        Does not enforce the deadline; the caller must.

        Raises:
            InferenceFailed: the engine failed on one of the images, or on all where such images are skipped.
            EngineLost: the engine has failed for good.
        """
        return await self._future

    def is_skipped(self, index: int) -> bool:
        """Whether image `index` is left out."""
        return self._skipped is not None and index in self._skipped

    def is_known(self, index: int) -> bool:
        """Whether the results of image `index` need not be computed."""
        return index in self._known

    def can_skip(self, error: ServiceError) -> bool:
        """Whether `error` leaves one image out; otherwise it fails the request."""
        return self._skipped is not None and "image" in error.details

    def on_taken(self, entries: Sequence[QueueEntry]) -> None:
        """Does nothing."""

    def on_dropped(self, entries: Sequence[QueueEntry]) -> None:
        """Does nothing: the request waits until its deadline, which its caller enforces."""

    def on_result(self, index: int, result: Result | ServiceError, queue_s: float, infer_s: float) -> None:
        """Stores a result. The first failure of an image fails the request."""
        self.queue_s, self.infer_s = max(self.queue_s, queue_s), max(self.infer_s, infer_s)
        image = index // self._passes
        if self._future.done() or self.is_skipped(image):
            return
        if isinstance(result, ServiceError):
            self.on_failed(result)
            return
        self._results[index] = result
        self._finish_image(image, self._missing[image] - 1)

    def on_failed(self, error: ServiceError) -> None:
        """Fails the request, unless it is done, or the error is that of one image and such images are skipped."""
        if self._future.done():
            return
        if self._skipped is None or not self.can_skip(error):
            self._future.set_exception(error)
        elif not self.is_skipped(index := error.details["image"]):
            self._skipped[index] = error
            self._finish_image(index, 0)

    def _finish_image(self, image: int, missing: int) -> None:
        self._missing[image] = missing
        if not missing and not any(self._missing):
            self._finish()

    def _finish(self) -> None:
        """Gives the results; the error of the first image if all were skipped."""
        results = [
            result
            for index, result in enumerate(self._results)
            if result is not None and not self.is_skipped(index // self._passes)
        ]
        if results or not self._skipped:
            self._future.set_result(results)
        else:
            self._future.set_exception(self._skipped[min(self._skipped)])

    def close(self) -> None:
        """Ends the wait; asyncio does not report an exception that nobody has asked for."""
        if not self._future.cancel() and not self._future.cancelled():
            self._future.exception()
