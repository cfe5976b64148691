"""Chooses how many images a free lane takes, and when the joined lane runs, by measured seconds and the recent load.

A batch makes its first images wait for its last one, and frees its lane earlier than single images would. So a batch
pays where the images behind it win more time than its own images lose: on a GPU at once, on a CPU under load.

The module has no thread and reads no clock: the caller passes times and counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from model.engines.base import EngineInfo
from model.engines.batch_seconds import BatchSeconds
from service.inference.queue import BatchKey

WINDOW = 50.0
"""The recent load is a mean whose weights fall to a third within the time that a lane takes for so many images.

In a much shorter time, a few images that come close together would look like a high load, and be made to share a batch
that nothing behind them needs."""
LEAST_BUSY = 0.1
"""The arrivals per second are a mean over at least this share of that time, so that two images are no high rate."""
MEMORY = 4.0
"""Number of these windows after which a third (1 / e) of a slowdown is left, if no such call has run meanwhile."""
RECENT_CALLS = 8
"""Number of calls whose mean tells how much slower they are than measured."""
MOST_SLOWDOWN = 4.0
"""The largest slowdown that counts: a call that a pause of the machine held up tells nothing."""
WAIT_WEIGHT = 4.0
"""The weight of a second of waiting, where a second of a call has 1: the slowest images are those that wait."""
FULL_LOAD = 0.999
"""The largest load in the formula, as a share of the lanes' time: at a load of 1 a queue never becomes empty."""


class BatchPlan(NamedTuple):
    """The next batch of a free lane."""

    size: int
    """The largest number of images."""
    joined: bool = False
    """Whether it runs on the joined lane."""


class BatchFormer:
    """Plans batches. Without measured seconds each batch is as large as it can be, and the joined lane never runs."""

    def __init__(self, info: EngineInfo) -> None:
        """No lane is busy, and nothing has arrived; the measured seconds are those of `info`, if there are any."""
        self.lanes = info.lanes
        self._joined = info.joined
        self._max_batch = info.preferred_batch
        self._num_patches = info.config.num_patches
        self._curves = info.batch_curves
        self._by_key: dict[BatchKey, _Seconds] = {}
        self._load = RecentLoad(info.lanes)
        if self._curves is not None:
            self._load.window_s = WINDOW * max(seconds.lanes[1] for seconds in self._curves.shapes.values())

    def advance(self, now: float, busy: int) -> None:
        """Counts the time until `now`, in seconds, in which `busy` lanes were busy; all of them with the joined one."""
        self._load.advance(now, busy)

    def count_arrival(self, busy: int) -> None:
        """Counts an image that has arrived while `busy` lanes were busy."""
        if busy:
            self._load.count_arrival()

    def note_seconds(self, key: BatchKey, size: int, joined: bool, seconds: float) -> None:
        """Compares the seconds that a batch took with the measured ones: decoding beside it makes it slower."""
        if self._curves is not None and size == 1:
            measured = self._seconds_of(key)
            one = measured.joined[1] if joined else measured.lanes[1]
            measured.slowdowns[joined].note(self._load.now, seconds / one)

    def plan(
        self, key: BatchKey, of_key: int, waiting: int, expected: int, idle: int, may_join: bool = True
    ) -> BatchPlan:
        """The next batch of a free lane.

        Args:
            key: of the images whose turn it is.
            of_key: number of images with this key that wait.
            waiting: number of all images that wait.
            expected: the same with images that are being decoded for the queue.
            idle: number of lanes that run no batch, the free one included.
            may_join: whether the joined lane may run if no lane runs a batch.
        """
        if self._curves is None:
            return BatchPlan(self._max_batch)
        seconds = self._seconds_of(key)
        most = min(of_key, self._max_batch)
        if may_join and self._joined and idle == self.lanes and self._joined_pays(seconds, max(waiting, expected)):
            return BatchPlan(choose_size(seconds.joined, most, waiting, 1, 1, self._load.busy), joined=True)
        return BatchPlan(choose_size(seconds.lanes, most, waiting, self.lanes, idle, self._load.busy))

    def _seconds_of(self, key: BatchKey) -> _Seconds:
        assert self._curves is not None
        if key not in self._by_key:
            of_shape = self._curves.of(key.operation, key.max_visible, self._num_patches)
            self._by_key[key] = _Seconds(of_shape, self._max_batch, MEMORY * self._load.window_s)
        return self._by_key[key]

    def _joined_pays(self, seconds: _Seconds, images: int) -> bool:
        """Whether images should run one after the other on the joined lane, when no lane is busy.

        Both must hold: the images that are there end earlier on average than side by side, and so do images that go on
        to arrive at the recent rate, where waiting counts more than running.

        Args:
            seconds: measured for images of this kind.
            images: number of images that wait, or will after decoding.
        """
        if not joined_is_earlier(seconds.shape, images, self.lanes):
            return False
        now, rate = self._load.now, self._load.arrivals_per_s
        joined = seconds.joined[1] * seconds.slowdowns[True].mean(now)
        one = seconds.lanes[1] * seconds.slowdowns[False].mean(now)
        of_lanes = one + WAIT_WEIGHT * wait_seconds(one, rate, self.lanes)
        of_joined = joined + WAIT_WEIGHT * wait_seconds(joined, rate, 1)
        # Where neither keeps pace, the one counts that takes more images per second.
        return (of_joined, joined) <= (of_lanes, one / self.lanes)


class Slowdown:
    """The seconds of recent calls over those that were measured while nothing else ran."""

    def __init__(self, memory_s: float) -> None:
        """No call has been noted, so they count as equal.

        After `memory_s` seconds without a call, a third (1 / e) of a difference is left.
        """
        self._memory_s = memory_s
        self._difference = 0.0
        self._at = 0.0

    def note(self, now: float, ratio: float) -> None:
        """Counts a call that took `ratio` times the measured seconds."""
        self._difference = self.mean(now) - 1
        self._difference += (min(ratio, MOST_SLOWDOWN) - 1 - self._difference) / RECENT_CALLS
        self._at = now

    def mean(self, now: float) -> float:
        """The mean of the recent calls. Without further calls it goes back to 1."""
        return 1 + self._difference * math.exp((self._at - now) / self._memory_s)


class RecentLoad:
    """The load of the lanes lately. What is long ago counts less and less."""

    def __init__(self, lanes: int, window_s: float = 1.0) -> None:
        """No load; a time that is `window_s` seconds ago counts a third (1 / e) of the present."""
        self.window_s = window_s
        self.busy = 0.0
        """The share of the lanes' time in which they were busy."""
        self._lanes = lanes
        self.now = -math.inf
        """The time of the last `advance`."""
        self._busy_s = 0.0
        """Seconds in which a lane was busy."""
        self._arrivals = 0.0
        """Number of images that arrived in these seconds."""

    @property
    def arrivals_per_s(self) -> float:
        """Images per second while a lane is busy: none where each waits for the answer to the one before."""
        return self._arrivals / max(self._busy_s, LEAST_BUSY * self.window_s)

    def advance(self, now: float, busy: int) -> None:
        """Counts the time until `now`, in which `busy` lanes were busy."""
        if now <= self.now:
            return
        kept = math.exp((self.now - now) / self.window_s)
        self.now = now
        self.busy += (busy / self._lanes - self.busy) * (1 - kept)
        self._busy_s = self._busy_s * kept + (self.window_s * (1 - kept) if busy else 0.0)
        self._arrivals *= kept

    def count_arrival(self) -> None:
        """Counts an image that has arrived while a lane was busy."""
        self._arrivals += 1


def choose_size(seconds: list[float], most: int, waiting: int, lanes: int, idle: int, load: float) -> int:
    """The largest size of a batch by which all images together win time, compared with single images.

    With single images, the first `idle` of a queue start at once, and each further one when another lane is free again:
    s(1) / lanes later than the one before. A batch of b ends all its images after s(b). It saves b s(1) - s(b) seconds
    of one of the lanes. This brings all images behind it forward: those that wait, and those that will arrive before
    the queue is empty. At a load of r the latter make 1 / (1 - r) images of each one.

    Args:
        seconds: s(b), seconds of a batch on each lane at once, at index b.
        most: the largest size that is possible now.
        waiting: number of images that wait.
        lanes: number of lanes.
        idle: number of lanes that are free.
        load: the share of their time in which the lanes were busy lately.
    """
    one, load = seconds[1], min(load, FULL_LOAD)
    for size in range(most, 1, -1):
        batch = seconds[size]
        later = max(0, size - idle)
        lost = size * batch - one * (size + later * (later + 1) / (2 * lanes))
        saved = (size * one - batch) / lanes
        behind = (waiting - size + load * batch / one) / (1 - load)
        if saved * behind > lost:
            return size
    return 1


def joined_is_earlier(seconds: BatchSeconds, images: int, lanes: int) -> bool:
    """Whether images end earlier on average one after the other on the joined lane than side by side on the lanes."""
    if 1 not in seconds.joined:
        return False
    rounds, rest = divmod(images, lanes)
    side_by_side = (lanes * rounds * (rounds + 1) / 2 + rest * (rounds + 1)) / images
    one = seconds.lone if images == 1 else seconds.lanes[1]
    return seconds.joined[1] * (images + 1) / 2 < side_by_side * one


def wait_seconds(service_s: float, rate: float, servers: int) -> float:
    """Mean seconds that an image waits for one of `servers`, of equal, constant seconds, with random arrivals.

    Exact for one server (M/D/1). For more, images wait about half as long as with random seconds (M/M/c, Erlang's
    formula C). Infinite where more images arrive than the servers can take.
    """
    offered = rate * service_s
    load = offered / servers
    if load >= 1:
        return math.inf
    blocked = 1.0  # Erlang's formula B, by recursion over the number of servers
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    waits = blocked / (1 - load * (1 - blocked))  # Erlang's formula C: the probability that an image waits
    return service_s * waits / (2 * servers * (1 - load))


def fill_sizes(measured: Mapping[int, float], max_batch: int) -> list[float]:
    """Seconds at each index up to `max_batch`, none at 0; beyond the largest measured size nothing is saved.

    Size 1 is measured, or no size is: then the list is empty but for index 0.
    """
    sizes = sorted(measured)
    seconds = [0.0]
    for size in range(1, max_batch + 1) if sizes else ():
        below = max(known for known in sizes if known <= size)
        above = min((known for known in sizes if known >= size), default=None)
        if above is None:
            seconds.append(measured[below] * size / below)
        elif above == below:
            seconds.append(measured[size])
        else:
            share = (size - below) / (above - below)
            seconds.append(measured[below] + share * (measured[above] - measured[below]))
    return seconds


class _Seconds:
    """Seconds of the batches of a key by size: measured or between measured ones; and how they have been lately."""

    def __init__(self, shape: BatchSeconds, max_batch: int, memory_s: float) -> None:
        self.shape = shape
        self.slowdowns = {False: Slowdown(memory_s), True: Slowdown(memory_s)}
        """Of single images on the lanes, and on the joined lane."""
        self.lanes = fill_sizes(shape.lanes, max_batch)
        self.joined = fill_sizes(shape.joined, max_batch)
