"""What the scheduler tells of an image, so that its request's spans can be recorded."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import ServiceError


@dataclass(frozen=True, slots=True)
class TracedImage:
    """An image that was in a batch, or that was dropped before."""

    traceparent: str
    """Of its request's server span; empty if the request is not sampled."""
    queued_at: float
    """The time when it entered the queue, in seconds of time.monotonic()."""
    error: str = ""
    """Names its error; empty if it has a result."""


def error_name(outcome: object) -> str:
    """The name of an error in spans: the code that a response would have, or its class; empty for a result."""
    if isinstance(outcome, ServiceError):
        return outcome.code
    return type(outcome).__name__ if isinstance(outcome, BaseException) else ""
