"""Admission limits: an amount is reserved before it is used, and released afterwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from service.errors import QueueFull, TooManyImages

IMAGE = 1024
"""What a whole image takes of the budget of images."""
WHOLE: Sequence[float] = (1.0,)
"""The shares of an image of a request that takes no less than whole images."""


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
    """Images that were admitted and are not in a batch yet, up to QUEUE_IMAGES; `IMAGE` for each, less for one of which
    fewer patches are encoded because of the load."""
    decodes: Budget
    """Bytes of memory that decodes hold, up to MAX_DECODE_MB. Threads of the pool take from it, under a lock."""
    cache: Budget = field(default_factory=LocalBudget)
    """Bytes of cached results; only counted, since each process keeps to its share of CACHE_MB."""


def require_possible(budget: Budget, count: int, passes: int = 1) -> None:
    """Checks that `count` whole images, which are `passes` passes of each image, fit into the queue when it is empty.

    Raises:
        TooManyImages: they can never fit.
    """
    if budget.limit is not None and count * IMAGE > budget.limit:
        images = "1 image" if count == passes else f"{count // passes} images"
        if passes > 1:
            images += f" in {passes} passes" if count == passes else f" in {passes} passes each"
        limit = budget.limit // IMAGE
        raise TooManyImages(f"{images} in one request, but the queue holds {limit}", limit=limit)


def reserve_images(budget: Budget, count: int, shares: Sequence[float] = WHOLE) -> float:
    """Reserves room for `count` images in the queue, each of which counts as a share of an image.

    The first share is for a queue that is less than half full, the second for one that is less than three quarters
    full, and so on; the last one, which may be the only one, is for any queue. If the largest share waited until the
    queue is full, requests of one image would never get a smaller one.

    Args:
        budget: of the queue.
        count: number of images.
        shares: the shares that are allowed, the largest first.

    Returns:
        The largest share that is for a queue as full as this, and for which there is room.

    Raises:
        QueueFull: there is room for none.
    """
    *others, least = shares
    used, left = budget.used, 1.0
    for share in others:
        left /= 2  # the part of the queue that is kept for smaller shares
        if (budget.limit is None or used < budget.limit * (1 - left)) and budget.take(count * count_units(share)):
            return share
    if budget.take(count * count_units(least)):
        return least
    limit = None if budget.limit is None else budget.limit // IMAGE
    raise QueueFull(f"{budget.used / IMAGE:.4g} images are waiting and {count} more are too many", limit=limit)


def count_units(share: float) -> int:
    """What a share of an image takes of the budget of images, at least 1."""
    return math.ceil(share * IMAGE)
