"""What there is so much of and no more: taken before it is used, given back afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Budget(Protocol):
    """A bounded amount."""

    @property
    def limit(self) -> int | None:
        """The bound; None for an amount that is only counted."""

    @property
    def used(self) -> int:
        """What is taken and not given back."""

    def take(self, amount: int) -> bool:
        """Takes `amount`; False, and nothing is taken, if that is more than is left."""

    def give(self, amount: int) -> None:
        """Gives `amount` back."""


class LocalBudget:
    """Of one process; not for threads."""

    def __init__(self, limit: int | None = None) -> None:
        """Nothing is taken yet."""
        self.limit = limit
        self.used = 0

    def take(self, amount: int) -> bool:
        """Takes `amount` if it is there."""
        if self.limit is not None and self.used + amount > self.limit:
            return False
        self.used += amount
        return True

    def give(self, amount: int) -> None:
        """Gives `amount` back."""
        self.used -= amount


@dataclass(frozen=True)
class Budgets:
    """What the requests of a service share."""

    bodies: Budget
    """Bytes of request bodies, up to MAX_INFLIGHT_MB."""
    requests: Budget
    """Requests for inference that have begun and are not answered; without a bound."""
