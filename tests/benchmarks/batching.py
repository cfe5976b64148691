"""Simulates batches and lanes in virtual time: the response of images at several loads, with the service's own queue.

    .venv/bin/python -m tests.benchmarks.batching
    .venv/bin/python -m tests.benchmarks.batching --lanes 16 --images 20000

The queue (`FairQueue`) and the plans (`BatchFormer`) are those of the service. Images come at random or from clients
that wait for each answer, are decoded by threads, and run in batches on lanes. The cores are shared: where more threads
run than there are cores, all get slower, and a thread of the joined lane that waits holds up the others. It is
arithmetic: nothing is measured here.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from model.engines.base import EngineInfo
from model.engines.batch_seconds import BatchCurves, BatchSeconds
from service.inference.batch_former import BatchFormer, BatchPlan, fill_sizes
from service.inference.queue import BatchKey, FairQueue, QueuedRequest, QueueEntry
from tests.benchmarks.arrivals import arrivals, constant
from tests.support.engines import fake_info

KEY = BatchKey("embed", 4)
PATCHES, INDICES = np.zeros((4, 3), np.uint8), np.arange(4, dtype=np.int32)
LOADS = (0.3, 0.5, 0.8, 0.95)
CLIENTS = (1, 2, 8, 32, 256)
Rule = Callable[[BatchFormer, FairQueue, int, int], BatchPlan]
"""Plans a batch from the former, the queue, the number of images that are decoded or wait, and the idle lanes."""


@dataclass(frozen=True)
class Host:
    """A machine and an engine on it."""

    seconds: BatchSeconds
    lanes: int = 2
    max_batch: int = 4
    decode_s: float = 0.0
    """Seconds of a thread that decodes an image."""
    decode_threads: int = 2

    @property
    def capacity(self) -> float:
        """Images per second in single images, where all cores decode or run lanes."""
        return self.lanes / (self.seconds.lanes[1] + self.decode_s)

    def info(self) -> EngineInfo:
        """The description of the engine."""
        curves = BatchCurves(shapes={"embed whole": self.seconds, "embed quarter": self.seconds})
        changes = {"batch_curves": curves, "joined": bool(self.seconds.joined)}
        return fake_info(lanes=self.lanes, preferred_batch=self.max_batch).model_copy(update=changes)


@dataclass
class Outcome:
    """What a simulation has found."""

    seconds: list[float] = field(default_factory=list)
    """From the arrival of each image to its end."""
    sizes: Counter[int] = field(default_factory=Counter)
    """Number of batches of each size."""
    joined: int = 0
    """Number of images that ran on the joined lane."""
    ended_at: float = 0.0

    def percentiles(self) -> list[float]:
        """p50, p95 and p99 in seconds, without the first tenth."""
        return [float(value) for value in np.percentile(self.seconds[len(self.seconds) // 10 :], (50, 95, 99))]

    @property
    def images_per_s(self) -> float:
        """Images per second from the first arrival to the last end."""
        return len(self.seconds) / self.ended_at

    @property
    def mean_size(self) -> float:
        """Mean number of images per batch."""
        return sum(size * count for size, count in self.sizes.items()) / self.sizes.total()


@dataclass(eq=False)
class _Task:
    """A thread that decodes, or a lane that runs a batch."""

    left_s: float
    """Seconds that it still takes at full speed."""
    entries: list[QueueEntry]
    is_joined: bool = False
    begun_at: float = 0.0


class _NoSink:
    def on_taken(self, entries: object) -> None: ...

    def on_dropped(self, entries: object) -> None: ...

    def on_result(self, *_: object) -> None: ...

    def on_failed(self, error: object) -> None: ...


class Simulation:
    """The cores, the queue and the lanes of a host."""

    def __init__(self, host: Host, rule: Rule) -> None:
        self.host = host
        self._rule = rule
        self._former = BatchFormer(host.info())
        self._lane_s = fill_sizes(host.seconds.lanes, host.max_batch)
        self._joined_s = fill_sizes(host.seconds.joined, host.max_batch)
        self._queue = FairQueue(host.max_batch)
        self._to_decode: deque[QueueEntry] = deque()
        self._decoding: list[_Task] = []
        self._running: list[_Task] = []
        self._now = 0.0
        self._numbers = itertools.count()

    def run(self, times: list[float], clients: int = 0) -> Outcome:
        """Runs until all images have ended.

        Args:
            times: the times of arrivals, ascending; with clients, only their number counts.
            clients: number of clients of which each sends an image when the one before has ended; 0 for `times`.
        """
        outcome = Outcome()
        coming = deque(times)
        for _ in range(clients):
            coming.popleft()
            self._arrive(0.0)
        while coming or self._decoding or self._running:
            tasks = [*self._decoding, *self._running]
            speeds = self._speeds()
            ends = [self._now + task.left_s / speed for task, speed in zip(tasks, speeds, strict=True)]
            next_end = min(ends, default=float("inf"))
            arrives = bool(coming) and not clients and coming[0] <= next_end
            now = coming[0] if arrives else next_end
            for task, speed in zip(tasks, speeds, strict=True):
                task.left_s -= (now - self._now) * speed
            self._now = now
            if arrives:
                self._arrive(coming.popleft())
                continue
            task = tasks[ends.index(next_end)]
            if task in self._decoding:
                self._decoding.remove(task)
                self._put(task.entries[0])
                self._decode_next()
                continue
            self._note()
            self._former.note_seconds(KEY, len(task.entries), task.is_joined, self._now - task.begun_at)
            self._running.remove(task)
            for entry in task.entries:
                outcome.seconds.append(self._now - entry.queued_at)
                if clients and coming:
                    coming.popleft()
                    self._arrive(self._now)
            outcome.sizes[len(task.entries)] += 1
            outcome.joined += len(task.entries) * task.is_joined
            self._fill_lanes()
        outcome.ended_at = self._now
        return outcome

    @property
    def _busy(self) -> int:
        if any(task.is_joined for task in self._running):
            return self.host.lanes
        return len(self._running)

    def _note(self) -> None:
        self._former.advance(self._now, self._busy)

    def _speeds(self) -> list[float]:
        """The speed of each task: of those that decode, then of the lanes."""
        host, decoding = self.host, len(self._decoding)
        one, lone, cores = host.seconds.lanes[1], host.seconds.lone, host.lanes
        if any(task.is_joined for task in self._running):
            # The threads wait for the one whose core is shared.
            shared = 1 / (1 + -(-decoding // cores))
            return [shared] * (decoding + 1)
        busy = len(self._running)
        share = min(1.0, cores / (busy + decoding)) if busy + decoding else 1.0
        # Lanes disturb each other: between `lone` and `lanes`, by the number of busy ones.
        beside = (busy - 1) / (cores - 1) if cores > 1 and busy else 0.0
        return [share] * decoding + [share * one / (lone + (one - lone) * beside)] * busy

    def _arrive(self, at: float) -> None:
        request = QueuedRequest("embed", 1, float("inf"), _NoSink())
        entry = QueueEntry(request, next(self._numbers), PATCHES, INDICES, at)
        if self.host.decode_s:
            self._to_decode.append(entry)
            self._decode_next()
        else:
            self._put(entry)

    def _decode_next(self) -> None:
        while self._to_decode and len(self._decoding) < self.host.decode_threads:
            self._decoding.append(_Task(self.host.decode_s, [self._to_decode.popleft()]))

    def _put(self, entry: QueueEntry) -> None:
        self._note()
        self._former.count_arrival(self._busy)
        self._queue.put(KEY, entry)
        self._fill_lanes()

    def _fill_lanes(self) -> None:
        while len(self._queue) and self._busy < self.host.lanes:
            self._note()
            waiting = len(self._queue)
            expected = waiting + len(self._decoding) + len(self._to_decode)
            plan = self._rule(self._former, self._queue, expected, self.host.lanes - self._busy)
            entries = list(self._queue.next_batch(self._now, size=plan.size).entries)
            seconds = self._joined_s if plan.joined else self._lane_s
            self._running.append(_Task(seconds[len(entries)], entries, plan.joined, self._now))


def by_measurement(former: BatchFormer, queue: FairQueue, expected: int, idle: int) -> BatchPlan:
    """The rule of the service."""
    return former.plan(KEY, queue.count(KEY), len(queue), expected, idle)


def greedy(former: BatchFormer, queue: FairQueue, expected: int, idle: int) -> BatchPlan:
    """All that wait, up to the largest batch."""
    return BatchPlan(queue.max_batch_size)


def eight_per_lane(former: BatchFormer, queue: FairQueue, expected: int, idle: int) -> BatchPlan:
    """One image while fewer than 8 wait per lane."""
    return BatchPlan(1 if len(queue) < 8 * former.lanes else queue.max_batch_size)


def without_joined(former: BatchFormer, queue: FairQueue, expected: int, idle: int) -> BatchPlan:
    """The rule of the service on an engine without a joined lane."""
    return former.plan(KEY, queue.count(KEY), len(queue), expected, idle, may_join=False)


RULES: dict[str, Rule] = {"greedy": greedy, "8 per lane": eight_per_lane, "measured": by_measurement}


def open_times(rate: float, images: int, seed: int = 0) -> list[float]:
    """Times of random arrivals, about as many as `images`."""
    blocks = arrivals(constant(rate), images / rate, np.random.default_rng(seed))
    return [float(time) for block in blocks for time in block]


def curve(saving: float, max_batch: int = 4) -> BatchSeconds:
    """s(1) = 1, and a batch of `max_batch` saves this share per image: a constant, and a part that grows with b."""
    fixed = saving * max_batch / (max_batch - 1)
    return BatchSeconds(
        lone=1.0, lanes={size: fixed + (1 - fixed) * size for size in range(1, max_batch + 1)}, joined={}
    )


def accelerator(max_batch: int = 64) -> BatchSeconds:
    """s(b) = 1 + 0.02 b."""
    return BatchSeconds(lone=1.02, lanes={size: 1 + 0.02 * size for size in range(1, max_batch + 1)}, joined={})


def with_joined(seconds: BatchSeconds, joined: float) -> BatchSeconds:
    """The same with a joined lane that takes `joined` seconds for each image."""
    return seconds.model_copy(update={"joined": {size: joined * size for size in seconds.lanes}})


def print_table(name: str, host: Host, rules: dict[str, Rule], images: int) -> None:
    """Prints p50, p95 and p99 of each rule at all loads, over s(1)."""
    one = host.seconds.lanes[1]
    print(f"\n{name}")
    heads = [f"{rule:>34}" for rule in rules]
    print(f"{'':14}{''.join(heads)}")
    print(f"{'load':14}" + f"{'p50':>8}{'p95':>8}{'p99':>8}{'images/s':>10}" * len(rules))
    cases = [(f"{load:.0%}", open_times(load * host.capacity, images), 0) for load in LOADS]
    cases += [(f"{count} clients", [0.0] * images, count) for count in CLIENTS]
    for label, times, clients in cases:
        cells = []
        for rule in rules.values():
            outcome = Simulation(host, rule).run(times, clients)
            p50, p95, p99 = (value / one for value in outcome.percentiles())
            cells.append(f"{p50:8.2f}{p95:8.2f}{p99:8.2f}{outcome.images_per_s * one:10.3f}")
        print(f"{label:14}{''.join(cells)}", flush=True)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--images", type=int, default=5_000)
    options = parser.parse_args()
    lanes, images = options.lanes, options.images
    print("p50, p95, p99 in times of s(1), one image on a lane while all lanes are busy; images per s(1)")
    print_table("a batch of 4 saves 4 %", Host(curve(0.04), lanes), RULES, images)
    print_table("a batch of 4 saves 25 %", Host(curve(0.25), lanes), RULES, images)
    print_table("a GPU: s(b) = 1 + 0.02 b", Host(accelerator(), lanes, 64), RULES, images)
    lone, decode = 0.9, 0.1
    for joined in (1 / lanes, 1.2 / lanes, 1.4 / lanes):
        shape = with_joined(curve(0.04).model_copy(update={"lone": lone}), joined)
        host = Host(shape, lanes, decode_s=decode, decode_threads=lanes)
        name = f"a joined lane: {joined:.2f} for an image, {lone} on a lane alone, and {decode} to decode it"
        print_table(name, host, {"without it": without_joined, "measured": by_measurement}, images)


if __name__ == "__main__":
    main()
