"""Notices an engine that hangs: a call or a load that does not end, by the time in which the process could run.

The wall clock is no measure: it also passes while the process is stopped, while the machine sleeps, and while a cgroup
gives the process a tenth of a CPU. So a thread sleeps for short random times. Each time that it wakes up punctually
counts as time in which the process could run, and no other time does. If the process may run for a tenth of the time,
few of the wake-ups are punctual.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from model.arrays import Bytes, Floats, Indices
from model.engines.base import CurveMeasurement, Engine, EngineInfo, MeasureStep
from model.engines.batch_seconds import BatchCurves

HANG_FACTOR = 20.0
HANG_LEAST_S = 30.0
"""A call hangs once it has run for HANG_FACTOR times its expected seconds, and for at least these."""
SLOW_FACTOR = 10.0
SLOW_LEAST_S = 1.0
"""A call is slow if it takes SLOW_FACTOR times the seconds measured at the start, and at least these."""
RECENT = 15
"""Number of calls of an operation whose median counts."""
BEAT_S = (0.05, 0.15)
"""The shortest and the longest time between two beats. They are random, because a scheduler that throttles has a period
of 0.1 s: beats with the same period would always come at the same point of it."""
LATE_S = 0.01
"""A beat that comes later than this does not count. Fewer than half of the beats come in time in a cgroup with a tenth
of a CPU, where a call takes 20 times as long as with two. `tests.attacks.hangs` tries it."""


class Watched(Protocol):
    """What may hang."""

    def beat(self, slept_s: float, late_s: float) -> str | None:
        """Counts a beat.

        Args:
            slept_s: the time that the beat should have taken, in seconds.
            late_s: the time by which it took longer.

        Returns:
            A sentence on what hangs; None if nothing does.
        """


class Watchdog:
    """The calls that run on the lanes, the seconds that they should take, and the time that the process has run.

    It reads no clock but the one that it is given, and has no thread.
    """

    def __init__(
        self, image_seconds: float, on_slow: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """No call runs yet.

        Args:
            image_seconds: seconds per image, as measured at the start; 0 if nobody has measured them.
            on_slow: called once for each slow call, in any thread.
            clock: tells the time in seconds.
        """
        self._image_seconds = image_seconds
        self._on_slow = on_slow
        self._clock = clock
        self._lock = threading.Lock()
        self._calls: dict[int, _Call] = {}
        self._recent: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        """Seconds per image of the last calls, by operation."""
        self._ran_s = 0.0

    @contextmanager
    def watch(self, lane: int, operation: str, images: int) -> Iterator[None]:
        """Watches a call on `lane`, which runs no other call meanwhile."""
        call = _Call(operation, images, self._clock(), self._ran_s)
        with self._lock:
            self._calls[lane] = call
        try:
            yield
        finally:
            with self._lock:
                del self._calls[lane]
                self._note_slow(call)
                self._recent[operation].append((self._clock() - call.begun_at) / images)

    def beat(self, slept_s: float, late_s: float) -> str | None:
        """See `Watched.beat`: looks at all calls."""
        with self._lock:
            self._ran_s += running_time(slept_s, late_s)
            for lane, call in self._calls.items():
                self._note_slow(call)
                ran_s, limit_s = self._ran_s - call.ran_before_s, self._limit_s(call)
                if ran_s > limit_s:
                    return (
                        f"lane {lane} hangs: a batch of {call.images} for {call.operation} has not returned after"
                        f" {ran_s:.3g} s of running time; the limit is {limit_s:.3g} s"
                    )
        return None

    def _limit_s(self, call: _Call) -> float:
        recent = self._recent[call.operation]
        expected = max(self._image_seconds, statistics.median(recent) if recent else 0.0)
        return max(HANG_LEAST_S, HANG_FACTOR * expected * call.images)

    def _note_slow(self, call: _Call) -> None:
        limit_s = max(SLOW_LEAST_S, SLOW_FACTOR * self._image_seconds * call.images)
        if not call.slow and self._clock() - call.begun_at > limit_s:
            call.slow = True
            self._on_slow()


class LoadWatchdog:
    """The time that the process has run since the current step of loading the engine began. It has no thread."""

    def __init__(self, limit_s: float, step: Callable[[], str]) -> None:
        """Loading begins now.

        Args:
            limit_s: the longest running time of a step, in seconds.
            step: names the step of loading that runs.
        """
        self._limit_s = limit_s
        self._step = step
        self._current = step()
        self._ran_s = 0.0

    def beat(self, slept_s: float, late_s: float) -> str | None:
        """See `Watched.beat`."""
        if (step := self._step()) != self._current:
            self._current, self._ran_s = step, 0.0
        self._ran_s += running_time(slept_s, late_s)
        if self._ran_s <= self._limit_s:
            return None
        return (
            f"this step of loading the engine has not ended after {self._limit_s:g} s of running time"
            f" (LOAD_TIMEOUT_S): {step}"
        )


class WatchedEngine:
    """An `Engine` each of whose calls is watched."""

    def __init__(self, engine: Engine, watchdog: Watchdog) -> None:
        """Runs the calls on `engine`."""
        self._engine = engine
        self._watchdog = watchdog

    @property
    def info(self) -> EngineInfo:
        """See `Engine.info`. It may change: the seconds of batches are measured after the start."""
        return self._engine.info

    @info.setter
    def info(self, info: EngineInfo) -> None:
        self._engine.info = info

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.embed`."""
        with self._watchdog.watch(lane, "embed", len(patches)):
            return self._engine.embed(lane, patches, visible_indices)

    def tokens(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.tokens`."""
        with self._watchdog.watch(lane, "tokens", len(patches)):
            return self._engine.tokens(lane, patches, visible_indices)

    def reconstruct(self, lane: int, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Floats]:
        """See `Engine.reconstruct`."""
        with self._watchdog.watch(lane, "reconstruct", len(patches)):
            return self._engine.reconstruct(lane, patches, visible_indices)


class WatchedMeasurement:
    """A `CurveMeasurement` each of whose steps is watched."""

    def __init__(self, measurement: CurveMeasurement, watchdog: Watchdog) -> None:
        """Has the steps of `measurement`."""
        self.curves: BatchCurves | None = measurement.curves
        self._measurement = measurement
        self._watchdog = watchdog

    def prepare(self) -> None:
        """See `CurveMeasurement.prepare`; not watched, since no lane waits for it."""
        self._measurement.prepare()

    def next_step(self) -> MeasureStep | None:
        """See `CurveMeasurement.next_step`."""
        step = self._measurement.next_step()
        self.curves = self._measurement.curves
        return None if step is None else replace(step, run=partial(self._run, step))

    def abandon(self) -> None:
        """See `CurveMeasurement.abandon`."""
        self._measurement.abandon()

    def _run(self, step: MeasureStep, lane: int) -> float:
        with self._watchdog.watch(lane, step.operation, step.images):
            return step.run(lane)


class Heartbeat:
    """The thread that beats. It needs the interpreter: if a hung call keeps the GIL, nothing in the process runs."""

    def __init__(self, watched: Watched, on_hang: Callable[[str], object]) -> None:
        """Does not beat yet; `on_hang` is called in the thread, at most once, with the sentence of `Watched.beat`."""
        self._watched = watched
        self._on_hang = on_hang
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, and waits for its end."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        if reason := beat_until_hang(self._watched, self._stopped.wait):
            self._on_hang(reason)


def beat_until_hang(
    watched: Watched, wait: Callable[[float], bool], clock: Callable[[], float] = time.monotonic
) -> str | None:
    """Beats until something hangs, and returns the sentence on it; returns None if it is to stop.

    Args:
        watched: counts the beats.
        wait: sleeps for a number of seconds, and returns early and true if the beats are to stop.
        clock: tells the time in seconds.
    """
    while True:
        seconds, start = random.uniform(*BEAT_S), clock()
        if wait(seconds):
            return None
        if reason := watched.beat(seconds, clock() - start - seconds):
            return reason


def running_time(slept_s: float, late_s: float) -> float:
    """Seconds in which the process could run during a beat: all of it if the beat was punctual, else none."""
    return slept_s if late_s <= LATE_S else 0.0


@dataclass
class _Call:
    operation: str
    images: int
    begun_at: float
    """The wall clock, in seconds."""
    ran_before_s: float
    """The time that the process had run when the call began, in seconds."""
    slow: bool = False
