"""The way from a request to the lanes of an engine, as the pipeline sees it.

`service.inference.batch_scheduler` is that of the process which has the engine, and
`service.workers.scheduler_client` that of a worker in front of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from model.arrays import Bytes, Indices
from service.errors import ServiceError
from service.inference.limits import WHOLE
from service.inference.queue import Operation, QueuedRequest, ResultSink


class Scheduler(Protocol):
    """The way from a request to the lanes: in this process, or in the engine process. Used on the event loop."""

    def admit(
        self,
        operation: Operation,
        count: int,
        deadline: float,
        sink: ResultSink,
        passes: int = 1,
        shares: Sequence[float] = WHOLE,
        traceparent: str = "",
    ) -> QueuedRequest:
        """Reserves room for `count` images, before they are decoded.

        Every admitted request must be released.

        Args:
            operation: what the engine does with the images.
            count: number of images, each pass counted.
            deadline: images enter no batch after this time, in seconds of time.monotonic(). The caller enforces it.
            sink: receives the results.
            passes: number of passes of each image.
            shares: the shares of an image that each image may count as, the largest first. The request gets one of
                them, by `reserve_images`; the caller must encode no more of its images than that.
            traceparent: names the request's span in traces; empty if the request is not traced.

        Raises:
            TooManyImages: the queue can never hold so many.
            QueueFull: the queue cannot hold so many now.
            EngineLost: the engine has failed for good.
        """

    def put(self, request: QueuedRequest, index: int, patches: Bytes, visible_indices: Indices) -> None:
        """Queues image `index` of a request.

        Args:
            request: as `admit` returned it; a released request ignores the image.
            index: number of the image within the request, each pass counted.
            patches: uint8 [K, P]; all patches, [N, P], for `reconstruct`.
            visible_indices: int32 [K], with one K for all images of a request.

        Raises:
            EngineLost: the engine has failed for good.
        """

    def release(self, request: QueuedRequest) -> None:
        """Frees the room that a request still holds; none of its images enters a batch any more."""

    def sample(self, patches: Bytes) -> None:
        """Has an image's drift measured once no lane is needed, or drops it: no request waits for it.

        Args:
            patches: uint8 [N, P].
        """

    def fail_all(self, error: ServiceError) -> None:
        """Fails every request that was admitted and not released."""

    def stop(self) -> None:
        """Ends the lanes once the queue is empty."""


def copy_error(error: ServiceError) -> ServiceError:
    """A copy of `error` for one request: a shared exception would accumulate tracebacks."""
    return type(error)(error.message, **error.details)
