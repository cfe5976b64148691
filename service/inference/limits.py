"""Admission limits: an amount is reserved before it is used, and released afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from service.errors import QueueFull, TooManyImages


class Budget(Protocol):
    """A bounded amount."""

    @property
    def limit(self) -> int | None:
        """The bound; None for an amount that is only counted."""

    @property
    def used(self) -> int:
        """The amount that is reserved now."""

    def take(self, amount: int) -> bool:
        """Reserves `amount` and returns True; returns False, and reserves nothing, if less than that is left."""

    def give(self, amount: int) -> None:
        """Releases `amount`."""


class LocalBudget:
    """A budget of one process. The caller serialises its calls."""

    def __init__(self, limit: int | None = None) -> None:
        """Nothing is reserved yet."""
        self.limit = limit
        self.used = 0

    def take(self, amount: int) -> bool:
        """Reserves `amount`, unless less than that is left."""
        if self.limit is not None and self.used + amount > self.limit:
            return False
        self.used += amount
        return True

    def give(self, amount: int) -> None:
        """Releases `amount`."""
        self.used -= amount


@dataclass(frozen=True)
class Budgets:
    """The amounts that all requests of a service share."""

    bodies: Budget
    """Bytes of request bodies, up to MAX_INFLIGHT_MB."""
    requests: Budget
    """Inference requests that have begun and are not answered; unbounded."""
    images: Budget
    """Images that were admitted and are not in a batch yet, up to QUEUE_IMAGES."""
    decodes: Budget
    """Bytes of memory that decodes hold, up to MAX_DECODE_MB. Threads of the pool take from it, under a lock."""


def require_possible(budget: Budget, count: int, passes: int = 1) -> None:
    """Checks that `count` images, which are `passes` passes of each image, fit into the queue when it is empty.

    Raises:
        TooManyImages: they can never fit.
    """
    if budget.limit is not None and count > budget.limit:
        images = f"{count} images" if passes == 1 else f"{count // passes} images in {passes} passes each"
        raise TooManyImages(f"{images} in one request, but the queue holds {budget.limit}", limit=budget.limit)


def reserve_images(budget: Budget, count: int) -> None:
    """Reserves room for `count` images in the queue.

    Raises:
        QueueFull: they do not fit now.
    """
    if not budget.take(count):
        raise QueueFull(f"{budget.used} images are waiting and {count} more are too many", limit=budget.limit)
