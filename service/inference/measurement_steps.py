"""The steps in which the seconds of batches are measured after the start, between the batches of requests.

The module has no thread and reads no clock. The caller holds a lock around every call but `run`, and lets no lane run
anything else while a step runs. A failure ends the measurement alone.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from model.engines.base import CurveMeasurement, FatalEngineError, MeasureStep
from service.metrics import Metrics

log = logging.getLogger(__name__)
PAUSES_S = (1.0, 2.0, 4.0)
"""The pauses before a step is tried again that a request has disturbed. After the last one its seconds count however
they came about: a server that is never idle would measure nothing otherwise."""


class StepPart(NamedTuple):
    """What one lane does in a step."""

    step: MeasureStep
    lane: int


class MeasurementSteps:
    """The steps of a measurement, one at a time."""

    def __init__(self, measurement: CurveMeasurement, metrics: Metrics) -> None:
        """No step runs yet; `measurement` is prepared, and `metrics` get its failures."""
        self.is_over = False
        """Whether the last step has ended, or one has failed."""
        self._measurement = measurement
        self._metrics = metrics
        self._step: MeasureStep | None = None
        """The step that runs."""
        self._to_start: list[int] = []
        """The lanes whose part of it has not begun."""
        self._threads: set[int] = set()
        """The lanes whose threads have begun a part: each runs one at most, so that all parts run at the same time."""
        self._running = 0
        self._seconds: list[float] = []
        """Of the parts that have ended."""
        self._is_disturbed = False
        self._disturbed = 0
        """How often requests have disturbed this step, one try after the other."""
        self._next_at = 0.0

    @property
    def is_running(self) -> bool:
        """Whether a step runs."""
        return self._step is not None

    def begin(self, now: float) -> bool:
        """Begins the next step, unless there is a pause until later than `now`; returns whether it has begun."""
        if now < self._next_at or (step := self._find_next()) is None:
            return False
        self._step, self._to_start = step, list(step.lanes)
        self._threads, self._seconds, self._is_disturbed = set(), [], False
        return True

    def take_part(self, lane: int) -> StepPart | None:
        """A part of the step that runs, for the thread of `lane`; None if there is none for it."""
        if self._step is None or not self._to_start or lane in self._threads:
            return None
        self._threads.add(lane)
        self._running += 1
        return StepPart(self._step, self._to_start.pop(0))

    def run(self, part: StepPart) -> float | None:
        """Runs a part in the thread that has taken it; returns its seconds, or None if it has failed.

        Raises:
            FatalEngineError: the device is lost.
        """
        try:
            return part.step.run(part.lane)
        except FatalEngineError:
            raise
        except Exception as error:
            self._fail(error)
            return None

    def disturb(self) -> None:
        """A request has come: if a step runs, its seconds do not count."""
        self._is_disturbed = True

    def end_part(self, seconds: float | None, now: float) -> None:
        """Ends a part that took `seconds`, or has failed; the last one ends the step."""
        assert self._step is not None
        self._running -= 1
        if seconds is not None:
            self._seconds.append(seconds)
        if self._running or self._to_start:
            return
        step, self._step = self._step, None
        if self.is_over:
            return
        if self._is_disturbed and self._disturbed < len(PAUSES_S):
            self._next_at = now + PAUSES_S[self._disturbed]
            self._disturbed += 1
            return
        self._disturbed = 0
        try:
            step.record(max(self._seconds))
        except Exception as error:
            self._fail(error)
        self._find_next()

    def seconds_to_wait(self, now: float) -> float | None:
        """Seconds until a step may be tried again; None if nothing but a request keeps it from running."""
        return self._next_at - now if now < self._next_at else None

    def _find_next(self) -> MeasureStep | None:
        """The next step; after the last one, the measurement is over."""
        step = None
        if not self.is_over:
            try:
                step = self._measurement.next_step()
            except Exception as error:
                self._fail(error)
        self.is_over = step is None
        return step

    def _fail(self, error: Exception) -> None:
        self.is_over = True
        self._measurement.abandon()
        self._metrics.engine_failures.labels("raised").inc()
        log.error("the seconds of batches cannot be measured: %s", error)
