"""An engine and clients that know each image by its number, and notice whatever happens to it twice or wrongly."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from model.engines.base import EngineError, MeasureStep
from model.engines.batch_seconds import BatchCurves
from service.errors import InferenceFailed, ServiceError
from service.inference.executor import GREY
from service.inference.limits import IMAGE, LocalBudget
from service.inference.pending_results import PendingResults
from service.inference.queue import DecoderOutput, Operation, QueuedRequest, QueueEntry, Result
from tests.support.virtual_lanes import VirtualLanes

Behaviour = Literal["good", "bad", "not finite"]
"""Of an image: a batch with a bad one fails; the numbers of the other are not finite."""


@dataclass
class Engine:
    """An engine whose outputs repeat the number of each image; it keeps the outcome of the last call with an image."""

    lanes: VirtualLanes
    info: Any
    behaviours: dict[int, Behaviour] = field(default_factory=dict)
    visible: dict[int, int] = field(default_factory=dict)
    """The number of visible patches of each image."""
    outcomes: dict[int, str] = field(default_factory=dict)
    """What the last call with an image has given: `numbers`, `not finite` or `failed`."""
    faults: list[str] = field(default_factory=list)
    fails_on_grey: bool = False
    measuring: list[int] = field(default_factory=list)
    """The lanes that run a step of a measurement."""

    def embed(self, lane: int, patches: np.ndarray, visible_indices: np.ndarray) -> np.ndarray:
        return self._call("embed", lane, patches, visible_indices, (2, 8))

    def tokens(self, lane: int, patches: np.ndarray, visible_indices: np.ndarray) -> np.ndarray:
        return self._call("tokens", lane, patches, visible_indices, (visible_indices.shape[1], 8))

    def reconstruct(self, lane: int, patches: np.ndarray, visible_indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return patches.copy(), self._call("reconstruct", lane, patches, visible_indices, (4,))

    def _call(
        self, operation: str, lane: int, patches: np.ndarray, visible_indices: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray:
        if (patches == GREY).all():  # the probe after a failure
            if self.fails_on_grey:
                raise EngineError("not even grey")
            return np.zeros((1, *shape), np.float32)
        numbers = patches[:, 0, :4].copy().view("<u4").ravel().tolist()
        self._check(operation, numbers, patches, visible_indices)
        self._check_lane(lane)
        outcome = self.lanes.call(lane)
        bad = [number for number in numbers if self.behaviours[number] == "bad"]
        if outcome is not None or bad:
            self.outcomes |= dict.fromkeys(numbers, "failed")
            raise outcome or EngineError(f"images {bad}")
        rows = np.empty((len(numbers), *shape), np.float32)
        for row, number in zip(rows, numbers, strict=True):
            is_finite = self.behaviours[number] == "good"
            self.outcomes[number] = "numbers" if is_finite else "not finite"
            row[...] = number if is_finite else np.nan
        return rows

    def _check_lane(self, lane: int) -> None:
        """The joined lane runs alone, and no batch runs beside a step of a measurement."""
        busy = self.lanes.in_call
        if busy and self.info.lanes in (lane, *busy):
            self.faults.append(f"lane {lane} begins beside {busy}")
        if self.measuring:
            self.faults.append(f"lane {lane} runs a batch beside a measurement")

    def _check(self, operation: str, numbers: list[int], patches: np.ndarray, visible_indices: np.ndarray) -> None:
        if len(numbers) > self.info.preferred_batch:
            self.faults.append(f"a batch of {len(numbers)}")
        for number, own, indices in zip(numbers, patches, visible_indices, strict=True):
            visible = self.visible[number]
            if self.outcomes.get(number) in ("numbers", "not finite"):
                self.faults.append(f"image {number} was computed twice")
            if indices.tolist() != [*range(visible), *[-1] * (len(indices) - visible)]:
                self.faults.append(f"image {number} has the positions {indices}")
            if not self.info.mixes and len(indices) != visible:
                self.faults.append(f"image {number} of K = {visible} is in a batch of K = {len(indices)}")
            if not (own[: 4 if operation == "reconstruct" else visible] == patches_of(number, 1)[0]).all():
                self.faults.append(f"image {number} has patches of another one")


class Measurement:
    """Measures an engine in steps on all lanes, on one lane, and on the joined lane."""

    def __init__(self, engine: Engine, curves: BatchCurves) -> None:
        self.curves: BatchCurves | None = None
        self.recorded: list[float] = []
        self.is_abandoned = False
        self._engine, self._measured = engine, curves
        lanes = range(engine.info.lanes)
        self._steps = deque([tuple(lanes), (lanes[-1],), (engine.info.lanes,), tuple(lanes)])

    def prepare(self) -> None:
        raise AssertionError("called before")

    def next_step(self) -> MeasureStep | None:
        if not self._steps:
            assert self._engine.info.batch_curves is not None
            return None
        return MeasureStep(self._steps[0], "embed", 1, self._run, self._record)

    def abandon(self) -> None:
        self.is_abandoned = True

    def _run(self, lane: int) -> float:
        engine = self._engine
        others = {*engine.lanes.in_call} - {*engine.measuring}
        if others or lane not in self._steps[0]:
            engine.faults.append(f"lane {lane} measures beside {others}")
        engine.measuring.append(lane)
        start = engine.lanes.now
        try:
            if outcome := engine.lanes.call(lane):
                raise outcome
        finally:
            engine.measuring.remove(lane)
        return engine.lanes.now - start

    def _record(self, seconds: float) -> None:
        if self._engine.measuring:
            self._engine.faults.append("a step is recorded before its end")
        self.recorded.append(seconds)
        self._steps.popleft()
        if not self._steps:
            self.curves = self._measured
            changes = {"batch_curves": self._measured, "joined": True}
            self._engine.info = self._engine.info.model_copy(update=changes)


class BoundedBudget(LocalBudget):
    """A budget that refuses to leave its bounds."""

    def take(self, amount: int) -> bool:
        assert amount > 0
        taken = super().take(amount)
        assert 0 <= self.used <= (self.limit or 0)
        return taken

    def give(self, amount: int) -> None:
        super().give(amount)
        assert amount > 0 and self.used >= 0


class Machine(Protocol):
    """What runs the clients."""

    lanes: VirtualLanes
    engine: Engine

    def require(self, holds: bool, fault: str) -> None:
        """Keeps a fault."""


class Client(PendingResults):
    """A request, and what the scheduler has told of each of its images."""

    def __init__(self, machine: Machine, numbers: list[int], visible: int, operation: Operation) -> None:
        super().__init__(len(numbers))
        self.machine, self.numbers, self.visible, self.operation = machine, numbers, visible, operation
        self.queued: QueuedRequest
        self.put: dict[int, float] = {}
        """The images that were queued, and when."""
        self.taken: set[int] = set()
        self.dropped: set[int] = set()
        self.results: set[int] = set()
        self.has_left = False

    def on_taken(self, entries: Sequence[QueueEntry]) -> None:
        machine = self.machine
        for entry in entries:
            machine.require(not self.has_left, f"image {entry.index} enters a batch after its request has left")
            machine.require(machine.lanes.now < self.queued.deadline, "an image enters a batch after its deadline")
            machine.require(entry.index in self.waiting, "an image leaves the queue twice")
            self.taken.add(entry.index)

    def on_dropped(self, entries: Sequence[QueueEntry]) -> None:
        machine = self.machine
        for entry in entries:
            late = machine.lanes.now >= self.queued.deadline
            machine.require(late or self.has_left, "an image is dropped although its request waits for it")
            machine.require(entry.index in self.waiting, "an image leaves the queue twice")
            self.dropped.add(entry.index)

    def on_result(self, index: int, result: Result | ServiceError, queue_s: float, infer_s: float) -> None:
        machine, number = self.machine, self.numbers[index]
        machine.require(index in self.taken and index not in self.results, f"a result of image {index} too many")
        machine.require(queue_s >= 0 and infer_s >= 0, f"negative times: {queue_s} and {infer_s}")
        self.results.add(index)
        if machine.engine.outcomes[number] == "numbers":
            machine.require(self.is_own(result, number), f"image {number} has the result {result}")
        else:
            is_failure = isinstance(result, InferenceFailed) and result.details == {"image": index}
            machine.require(is_failure, f"image {number} has failed, and its result is {result}")
        super().on_result(index, result, queue_s, infer_s)

    def is_own(self, result: object, number: int) -> bool:
        if isinstance(result, DecoderOutput):
            is_own = np.array_equal(result.pixels, patches_of(number, 4)) and (result.error == number).all()
            return self.operation == "reconstruct" and bool(is_own)
        shape = (self.visible if self.operation == "tokens" else 2, 8)
        return isinstance(result, np.ndarray) and result.shape == shape and bool((result == number).all())

    @property
    def waiting(self) -> set[int]:
        """Its images in the queue."""
        return self.put.keys() - self.taken - self.dropped

    @property
    def room(self) -> int:
        """What it holds of the budget."""
        unbatched = 0 if self.has_left else len(self.numbers) - len(self.taken) - len(self.dropped)
        return unbatched * math.ceil(self.queued.share * IMAGE)

    @property
    def state(self) -> str:
        return "waits" if not self._future.done() else "failed" if self._future.exception() else "has results"


def patches_of(number: int, count: int) -> np.ndarray:
    return np.tile(np.array([number], "<u4").view(np.uint8), (count, 2))
