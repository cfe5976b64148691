"""Which lanes run a batch, and the plan of the next. The joined lane runs alone: it needs the cores of all lanes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model.engines.base import EngineInfo
from service.inference.batch_former import BatchFormer, BatchPlan
from service.inference.limits import IMAGE, Budget
from service.inference.queue import FairQueue, QueueEntry


@dataclass(frozen=True)
class LaneBatch:
    """A batch, and the lane that runs it."""

    lane: int
    entries: Sequence[QueueEntry]
    lanes: int = 1
    """Number of lanes that are busy with it: all of them where it runs on the joined lane."""


class LaneUse:
    """The lanes of an engine, without threads or a clock. The caller holds a lock around every call."""

    def __init__(self, info: EngineInfo, queue: FairQueue, images: Budget, waits_to_fill: bool) -> None:
        """No lane is busy.

        Args:
            info: describes the engine.
            queue: of the images that wait.
            images: budget of the queue, which also counts images that are being decoded.
            waits_to_fill: whether the operator wants full batches.
        """
        self.busy = 0
        """Number of lanes that run a batch; all of them with the joined one."""
        self.runs_joined = False
        """Whether the joined lane runs a batch; then no lane may take one."""
        self._queue = queue
        self._images = images
        self._waits_to_fill = waits_to_fill
        self.describe(info)

    def describe(self, info: EngineInfo) -> None:
        """Plans by another description of the engine."""
        self._lanes = info.lanes
        self._former = BatchFormer(info)
        self._queue.max_batch_size = info.preferred_batch

    @property
    def joined_lane(self) -> int:
        """The number of the joined lane."""
        return self._lanes

    def count_arrival(self, now: float) -> None:
        """Counts an image that is queued now."""
        self._former.advance(now, self.busy)
        self._former.count_arrival(self.busy)

    def plan(self, now: float, flush: bool, may_join: bool) -> BatchPlan:
        """The size of the next batch, and whether the joined lane should run it.

        Args:
            now: seconds of time.monotonic().
            flush: see `FairQueue.next_batch`.
            may_join: false while a lane measures drift: the joined lane runs alone.
        """
        self._former.advance(now, self.busy)
        key = None if self._waits_to_fill else self._queue.next_key(now, flush)
        if key is None:
            return BatchPlan(self._queue.max_batch_size)
        expected = -(-self._images.used // IMAGE)
        idle = self._lanes - self.busy
        return self._former.plan(key, self._queue.count(key), len(self._queue), expected, idle, may_join)

    def begin(self, lane: int, entries: Sequence[QueueEntry], joined: bool) -> LaneBatch:
        """Counts the lanes of a batch as busy."""
        batch = LaneBatch(self.joined_lane, entries, self._lanes) if joined else LaneBatch(lane, entries)
        self.busy += batch.lanes
        self.runs_joined = joined
        return batch

    def end(self, batch: LaneBatch, now: float, seconds: float | None) -> None:
        """Frees the lanes of a batch that took `seconds`, or has failed."""
        self._former.advance(now, self.busy)
        key = batch.entries[0].request.key
        if seconds is not None and key is not None:
            self._former.note_seconds(key, len(batch.entries), batch.lane == self.joined_lane, seconds)
        self.busy -= batch.lanes
        self.runs_joined = False
