"""A limit on images per second, with a burst: the generic cell rate algorithm (ITU-T I.371, annex A)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class ImageRate:
    """Lets `per_s` images pass per second, and `burst` images at once after a pause. The caller serialises its calls.

    The state is one number: the time at which all images that have passed would have passed one by one at the rate.
    """

    def __init__(self, per_s: float, burst: int, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """No image has passed yet; `clock` tells the time in nanoseconds."""
        self.per_s = per_s
        self.burst = burst
        self._interval_ns = 1e9 / per_s
        self._clock = clock
        self._passed_ns = 0

    def take(self, count: int) -> int:
        """Lets `count` images pass and returns 0, or returns the seconds, rounded up, after which it could.

        More images than the burst pass if none has passed for a while, and are then paid for by a longer pause.
        """
        now = self._clock()
        passed = max(self._get_time(), now)
        if wait := self._seconds_until(passed, now, count):
            return wait
        self._set_time(passed + round(count * self._interval_ns))
        return 0

    def seconds_until(self, count: int) -> int:
        """What `take` would return."""
        now = self._clock()
        return self._seconds_until(max(self._get_time(), now), now, count)

    def _seconds_until(self, passed: int, now: int, count: int) -> int:
        room_ns = (self.burst - min(count, self.burst)) * self._interval_ns
        return math.ceil(max(passed - now - room_ns, 0) / 1e9)

    def _get_time(self) -> int:
        return self._passed_ns

    def _set_time(self, time_ns: int) -> None:
        self._passed_ns = time_ns
