"""Admission limits: an amount is reserved before it is used, and released afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from service.errors import KeyRateExceeded, QueueFull, TooManyImages
from service.inference.image_rate import ImageRate
from service.settings import Settings

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
class KeyBudget:
    """What the requests with one API key may use together."""

    requests: Budget
    """Inference requests that have begun and are not answered, up to KEY_MAX_REQUESTS."""
    images: ImageRate | None
    """Images per second, up to KEY_IMAGES_PER_S; None without a limit."""


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
    keys: Mapping[str, KeyBudget] = field(default_factory=dict)
    """What each API key may use; empty if no limit is set for keys."""


def key_budgets(
    settings: Settings,
    make_budget: Callable[[int, int | None], Budget],
    make_rate: Callable[[int, float, int], ImageRate],
) -> Mapping[str, KeyBudget]:
    """The budget of each API key; none at all where no limit is set for keys.

    Args:
        settings: of the service.
        make_budget: makes the budget of requests from the index of the key and the limit.
        make_rate: makes the limit on images from the index of the key, the rate per second and the burst.
    """
    per_s, limit = settings.key_images_per_s, settings.key_max_requests or None
    if not per_s and limit is None:
        return {}
    burst = max(math.ceil(per_s), settings.max_images)  # any request that is allowed at all must pass at some time
    return {
        key: KeyBudget(make_budget(index, limit), make_rate(index, per_s, burst) if per_s else None)
        for index, key in enumerate(settings.api_keys)
    }


def require_rate(budget: KeyBudget) -> None:
    """Checks that the next request of a key may have an image.

    Raises:
        KeyRateExceeded: it may not.
    """
    if budget.images is not None and (seconds := budget.images.seconds_until(1)):
        raise _rate_exceeded(budget.images, seconds)


def charge_images(budget: KeyBudget, count: int) -> None:
    """Counts `count` images for a key.

    Raises:
        KeyRateExceeded: they are too many for now; none is counted.
    """
    if budget.images is not None and (seconds := budget.images.take(count)):
        raise _rate_exceeded(budget.images, seconds)


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
        raise TooManyImages(f"{images} in one request, but the queue holds {limit} (QUEUE_IMAGES)", limit=limit)


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
    raise QueueFull(
        f"{budget.used / IMAGE:.4g} images are waiting and {count} more are too many (QUEUE_IMAGES)", limit=limit
    )


def _rate_exceeded(rate: ImageRate, seconds: int) -> KeyRateExceeded:
    message = (
        f"requests with this key may have {rate.per_s:g} images per second, and {rate.burst} at once after a pause"
    )
    return KeyRateExceeded(message, limit=rate.per_s, burst=rate.burst, retry_after_s=seconds)


def count_units(share: float) -> int:
    """What a share of an image takes of the budget of images, at least 1."""
    return math.ceil(share * IMAGE)
