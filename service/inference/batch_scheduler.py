"""The scheduler forms batches of queued images and runs them on the lanes of an engine.

A lane is a thread. As soon as it is free it takes images that wait; the next batch forms while all lanes are busy, so
there is no timer unless MAX_DELAY_MS asks for one. `service.inference.queue` decides which images share a batch, and
whose turn it is; `service.inference.batch_former` decides how many are taken.

The joined lane uses the threads of all lanes. It has no thread of its own: any lane that is free calls it while no lane
runs anything, and until it has ended no lane takes a batch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from model.arrays import Bytes, Indices
from model.engines.base import CurveMeasurement, Engine
from service.errors import EngineLost, ServiceError
from service.inference.batch_results import BatchResults
from service.inference.drift import DriftMonitor, Sample
from service.inference.executor import BatchExecutor
from service.inference.lane_use import LaneBatch, LaneUse
from service.inference.limits import WHOLE, Budget, require_possible, reserve_images
from service.inference.measurement_steps import MeasurementSteps, StepPart
from service.inference.queue import BatchKey, FairQueue, Operation, QueuedRequest, QueueEntry, ResultSink
from service.inference.scheduler import copy_error
from service.metrics import Metrics

if TYPE_CHECKING:
    from service.tracing.spans import Tracer

log = logging.getLogger(__name__)
LAST_BATCH_S = 5.0
"""Time that a lane gets to finish its batch when the scheduler stops."""
LAST_BATCH_OF_LOST_S = 1.0
"""The same time after the engine was lost: its last batches have no result that anybody waits for."""


class BatchScheduler:
    """The `Scheduler` of the process that has the engine: one queue, and one thread for each lane."""

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        images: Budget,
        max_delay_s: float = 0.0,
        on_lost: Callable[[str], None] = log.critical,
        drift: DriftMonitor | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """No lane runs yet.

        Args:
            engine: runs batches of up to `engine.info.preferred_batch` images.
            metrics: of the service.
            images: budget of the queue.
            max_delay_s: time that a free lane waits for a batch to fill, counted from its oldest image.
            on_lost: called on the event loop with the reason when the engine has failed for good.
            drift: measures the images of `sample`; None drops them.
            tracer: records the batches; None: they are not traced.
        """
        self.engine = engine
        self.lost: str | None = None
        """The reason why the engine has failed for good; None while it works."""
        self._metrics = metrics
        self._images = images
        self._results = BatchResults(metrics, tracer)
        self._on_lost = on_lost
        self._drift = drift
        self._measuring = False
        """Whether a lane measures drift; at most one does, so that another one is free for requests."""
        self._changed = threading.Condition()
        self._queue = FairQueue(engine.info.preferred_batch, max_delay_s)
        self._lane_use = LaneUse(engine.info, self._queue, images, max_delay_s > 0)
        self._requests: set[QueuedRequest] = set()
        self._steps: MeasurementSteps | None = None
        """The measurement of batches; None before and after it."""
        self._on_measured: Callable[[], object] = lambda: None
        self._stopping = False
        self._threads: list[threading.Thread] = []
        metrics.read_at_scrape(metrics.queue_images, lambda: self.waiting)
        metrics.read_at_scrape(metrics.lanes_busy, lambda: self._lane_use.busy)

    @property
    def waiting(self) -> int:
        """Number of images in the queue, decoded and ready for a batch."""
        with self._changed:
            return len(self._queue)

    def start(self) -> None:
        """Starts one thread for each lane. Results go to the running event loop."""
        self._results.open()
        for lane in range(self.engine.info.lanes):
            thread = threading.Thread(target=self._serve_lane, args=(lane,), name=f"lane-{lane}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def measure(self, measurement: CurveMeasurement, on_measured: Callable[[], object] = lambda: None) -> None:
        """Runs the steps of a measurement on the lanes while no image waits or is decoded, then plans by its curves.

        A request that comes meanwhile waits for one step at most. The step is then tried again after a pause,
        three times at most. Any thread may call this.

        Args:
            measurement: has the steps; it is prepared.
            on_measured: called on the event loop after the last step, or after one that has failed.
        """
        with self._changed:
            self._steps = MeasurementSteps(measurement, self._metrics)
            self._on_measured = on_measured
            self._changed.notify_all()

    def admit(
        self,
        operation: Operation,
        count: int,
        deadline: float,
        sink: ResultSink,
        passes: int = 1,
        shares: Sequence[float] = WHOLE,
        traceparent: str = "",
    ) -> QueuedRequest:
        """See `Scheduler.admit`."""
        require_possible(self._images, count, passes)
        with self._changed:
            if self.lost:
                raise EngineLost(self.lost)
            share = reserve_images(self._images, count, shares)
            if self._steps is not None:
                self._steps.disturb()
            request = QueuedRequest(operation, count, deadline, sink, passes, share, traceparent)
            self._requests.add(request)
        return request

    def put(self, request: QueuedRequest, index: int, patches: Bytes, visible_indices: Indices) -> None:
        """See `Scheduler.put`."""
        key = BatchKey(request.operation, self._max_visible(len(visible_indices)))
        entry = QueueEntry(request, index, patches, visible_indices, time.monotonic())
        with self._changed:
            if self.lost:
                raise EngineLost(self.lost)
            if not request.released:
                self._lane_use.count_arrival(entry.queued_at)
                self._queue.put(key, entry)
                self._changed.notify()

    def release(self, request: QueuedRequest) -> None:
        """See `Scheduler.release`."""
        with self._changed:
            if request.released:
                return
            request.released = True
            self._requests.discard(request)
            if request.unbatched:
                if entries := self._queue.remove(request):
                    request.sink.on_dropped(entries)
                    self._results.trace_dropped(entries)
                reason = "abandoned" if time.monotonic() < request.deadline else "deadline"
                self._drop(request, request.unbatched, reason)
                if self._steps is not None:
                    self._changed.notify()  # no image may be left that a step has waited for

    def sample(self, patches: Bytes) -> None:
        """See `Scheduler.sample`."""
        if self._drift is not None:
            with self._changed:
                self._drift.offer(patches)
                self._changed.notify()

    def fail_all(self, error: ServiceError) -> None:
        """See `Scheduler.fail_all`."""
        with self._changed:
            requests = list(self._requests)
        for request in requests:
            request.sink.on_failed(copy_error(error))

    def lose(self, reason: str) -> None:
        """The engine has failed for good: fails all admitted requests, and refuses all to come. Any thread may call."""
        with self._changed:
            first = self.lost is None
            self.lost = self.lost or reason
            self._changed.notify_all()
        self._results.call_on_loop(partial(self.fail_all, EngineLost(reason)))
        if first:
            self._results.call_on_loop(partial(self._on_lost, reason))

    def stop(self, seconds: float = LAST_BATCH_S) -> None:
        """Ends the lanes once the queue is empty; leaves a lane that takes longer than `seconds` to itself."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        end = time.monotonic() + (min(seconds, LAST_BATCH_OF_LOST_S) if self.lost else seconds)
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                log.error("%s is still running a batch, and is not waited for any longer", thread.name)

    def _max_visible(self, visible: int) -> int:
        """The `BatchKey.max_visible` of an image with `visible` visible patches.

        In a padded batch every image costs as much as the image with the largest number of visible patches. So images
        share a batch only if their numbers differ at most twofold, or are all at most a quarter of all patches.
        """
        if not self.engine.info.mixes:
            return visible
        num_patches = self.engine.info.config.num_patches
        return next(bound for bound in (num_patches // 4, num_patches // 2, num_patches) if visible <= bound)

    def _serve_lane(self, lane: int) -> None:
        joined = self._lane_use.joined_lane
        executors = {number: BatchExecutor(self.engine, number, self._metrics) for number in (lane, joined)}
        try:
            while work := self._next_work(lane):
                if isinstance(work, Sample):
                    self._measure_drift(lane, work)
                    continue
                if isinstance(work, StepPart):
                    self._run_part(work)
                    continue
                taken_at = time.monotonic()
                batch, seconds = work.entries, None
                try:
                    results, seconds = executors[work.lane].run(batch[0].request.operation, batch)
                except BaseException as error:
                    self._results.trace_batch(work.lane, batch, taken_at, [error] * len(batch))
                    raise
                finally:
                    self._end_batch(work, seconds)
                self._results.deliver(batch, results, seconds)
                self._results.trace_batch(work.lane, batch, taken_at, results)
                # While a lane waits, it keeps no images, nor the memory of a worker that has died.
                del work, batch, results
        except BaseException as error:  # However a lane ends, the log must show it: requests would wait for it forever.
            log.critical("lane %d has ended", lane, exc_info=error)
            self.lose(f"lane {lane} has ended: {error or type(error).__name__}")

    def _measure_drift(self, lane: int, sample: Sample) -> None:
        assert self._drift is not None
        self._drift.measure(lane, sample)
        with self._changed:
            self._measuring = False
            self._drift.give_back(sample)
            self._changed.notify_all()  # the joined lane or a step may have waited for the end

    def _next_sample(self) -> Sample | None:
        """A sample whose drift can be measured now: no image waits or is being decoded, and no other lane measures.

        The caller holds the lock.
        """
        if self._drift is None or self._measuring or self._stopping or self._images.used:
            return None
        sample = self._drift.take()
        self._measuring = sample is not None
        return sample

    def _begin_step(self, now: float) -> bool:
        """Begins a step of the measurement if no lane runs anything, and no image waits or is being decoded.

        The caller holds the lock.
        """
        if self._steps is None or self._lane_use.busy or self._measuring or self._stopping or self._images.used:
            return False
        has_begun = self._steps.begin(now)
        self._end_measurement()
        if has_begun:
            self._changed.notify_all()
        return has_begun

    def _run_part(self, part: StepPart) -> None:
        """Runs one lane's part of a step."""
        steps = self._steps
        assert steps is not None
        seconds = steps.run(part)
        with self._changed:
            steps.end_part(seconds, time.monotonic())
            if not steps.is_running:
                self._end_measurement()
                self._changed.notify_all()

    def _end_measurement(self) -> None:
        """After the last step, or a failure, plans by the engine's description. The caller holds the lock."""
        if self._steps is not None and self._steps.is_over:
            self._steps = None
            self._lane_use.describe(self.engine.info)
            self._results.call_on_loop(self._on_measured)

    def _next_work(self, lane: int) -> LaneBatch | Sample | StepPart | None:
        """Waits for a batch, or for a time to measure something; returns None when no batch will come any more."""
        with self._changed:
            while not self.lost:
                if self._steps is not None and (part := self._steps.take_part(lane)):
                    return part
                if self._lane_use.runs_joined or (self._steps is not None and self._steps.is_running):
                    self._changed.wait()
                    continue
                now = time.monotonic()
                plan = self._lane_use.plan(now, self._stopping, may_join=not self._measuring)
                batch = self._queue.next_batch(now, self._stopping, plan.size)
                for entry in batch.expired:
                    entry.request.sink.on_dropped((entry,))
                    self._drop(entry.request, 1, "deadline")
                self._results.trace_dropped(batch.expired)
                if batch.entries:
                    for entry in batch.entries:
                        entry.request.unbatched -= 1
                        entry.request.sink.on_taken((entry,))
                    self._images.give(sum(entry.request.room(1) for entry in batch.entries))
                    return self._lane_use.begin(lane, batch.entries, plan.joined)
                if batch.wait_s != 0:  # No batch was due.
                    if self._stopping:
                        return None
                    if self._begin_step(now):
                        continue
                    if sample := self._next_sample():
                        return sample
                    self._changed.wait(self._seconds_to_wait(now, batch.wait_s))
            return None

    def _seconds_to_wait(self, now: float, batch_s: float | None) -> float | None:
        """Seconds until a batch is due, `batch_s`, or a step may be tried again; None if neither will be by itself."""
        step_s = None if self._steps is None else self._steps.seconds_to_wait(now)
        return min((seconds for seconds in (batch_s, step_s) if seconds is not None), default=None)

    def _end_batch(self, batch: LaneBatch, seconds: float | None) -> None:
        with self._changed:
            self._lane_use.end(batch, time.monotonic(), seconds)
            if batch.lane == self._lane_use.joined_lane:
                self._changed.notify_all()

    def _drop(self, request: QueuedRequest, count: int, reason: str) -> None:
        """Frees the room of `count` images of a request that enter no batch."""
        self._metrics.dropped.labels(reason).inc(count)
        self._images.give(request.room(count))
        request.unbatched -= count
