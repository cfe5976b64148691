"""The rule of Kubernetes' HorizontalPodAutoscaler, for the simulation of a fleet."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """What an autoscaler aims at: a metric's mean per replica.

    Attributes:
        metric: `queue` for the images that wait, `busy` for the share of the lanes that are busy.
        value: the aim for each replica.
        window_s: seconds over which the metric is averaged first.
    """

    metric: str
    value: float
    window_s: float


QUEUE = Target("queue", 16, 60)
BUSY = Target("busy", 0.7, 120)


@dataclass(frozen=True)
class Autoscaler:
    """Kubernetes' HorizontalPodAutoscaler, or that which KEDA makes."""

    targets: tuple[Target, ...]
    least: int = 2
    most: int = 8
    sync_s: float = 15
    scrape_s: float = 10
    tolerance: float = 0.1
    up_window_s: float = 30
    up_pods: int = 2
    up_period_s: float = 60
    down_window_s: float = 600
    down_pods: int = 1
    down_period_s: float = 300


class Recommender:
    """The rule of the HorizontalPodAutoscaler, with what it remembers."""

    def __init__(self, scaler: Autoscaler) -> None:
        self._scaler = scaler
        self._wanted: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()

    def replicas(self, now: float, current: int, sums: Sequence[float]) -> int:
        """The number of replicas from `now` on, from the sum over the replicas of the metric of each target."""
        scaler = self._scaler
        wanted = max(
            self._by_target(current, total, target) for total, target in zip(sums, scaler.targets, strict=True)
        )
        wanted = min(max(wanted, scaler.least), scaler.most)
        self._wanted.append((now, wanted))
        longest = max(scaler.up_window_s, scaler.down_window_s)
        while self._wanted[0][0] < now - longest:
            self._wanted.popleft()
        # Up only as far as all recommendations of the window go, down only as far as any of them allows.
        up = min(count for at, count in self._wanted if at >= now - scaler.up_window_s)
        down = max(count for at, count in self._wanted if at >= now - scaler.down_window_s)
        steady = min(max(current, up), down)
        if steady > current:
            room = scaler.up_pods - sum(max(change, 0) for change in self._since(now - scaler.up_period_s))
            steady = max(min(steady, current + room), current)
        elif steady < current:
            room = scaler.down_pods - sum(max(-change, 0) for change in self._since(now - scaler.down_period_s))
            steady = min(max(steady, current - room), current)
        if steady != current:
            self._changes.append((now, steady - current))
        return steady

    def _by_target(self, current: int, total: float, target: Target) -> int:
        ratio = total / (target.value * current)
        return current if abs(ratio - 1) <= self._scaler.tolerance else math.ceil(round(total / target.value, 9))

    def _since(self, start: float) -> Iterator[int]:
        return (change for at, change in self._changes if at > start)
