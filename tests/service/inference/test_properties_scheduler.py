"""Any schedule of requests, cancellations, failures and times: the scheduler keeps what its documentation promises."""

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from model.engines.base import EngineError, EngineInfo, FatalEngineError
from model.engines.batch_seconds import BatchCurves, BatchSeconds
from service.errors import EngineLost, QueueFull, TooManyImages
from service.inference.batch_scheduler import BatchScheduler
from service.inference.executor import GREY
from service.inference.limits import IMAGE
from service.inference.queue import Operation
from service.metrics import Metrics
from tests.service.inference.numbered_images import (
    Behaviour,
    BoundedBudget,
    Client,
    Engine,
    Measurement,
    patches_of,
)
from tests.support.engines import fake_info
from tests.support.virtual_lanes import VirtualLanes

SHARES = (1.0, 0.5, 0.25)
CPU = BatchSeconds(lone=0.9, lanes={1: 1.0, 4: 3.84}, joined={1: 0.6, 4: 2.4})
GPU = BatchSeconds(lone=1.0, lanes={1: 1.0, 4: 1.1}, joined={1: 0.9, 4: 1.0})
CURVES = [BatchCurves(shapes={"embed whole": whole, "embed quarter": GPU}) for whole in (CPU, GPU)]


class SchedulerMachine(RuleBasedStateMachine):
    """Clients, lanes and time in any order. After each step all lanes are at rest."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = VirtualLanes()
        self.loop = asyncio.new_event_loop()
        self.clients: list[Client] = []
        self.faults: list[str] = []
        self.images = 0
        self.may_be_lost = False
        self._patch = self.lanes.patch_modules()
        self._patch.__enter__()

    @initialize(
        lanes=st.integers(1, 3),
        batch=st.integers(1, 5),
        room=st.integers(1, 24),
        delay=st.sampled_from([0.0, 0.0, 0.5, 4.0]),
        mixes=st.booleans(),
    )
    def start(self, lanes: int, batch: int, room: int, delay: float, mixes: bool) -> None:
        info = fake_info(lanes=lanes, preferred_batch=batch).model_copy(update={"mixes": mixes})
        self._start(info, room, delay)

    def _start(self, info: EngineInfo, room: int, delay: float) -> None:
        self.engine = Engine(self.lanes, info, faults=self.faults)
        self.budget, self.delay, self.metrics = BoundedBudget(room * IMAGE), delay, Metrics()
        self.losses: list[str] = []
        engine: Any = self.engine
        self.scheduler = BatchScheduler(engine, self.metrics, self.budget, delay, self.losses.append)
        self._on_loop(self.scheduler.start)
        self.lanes.settle()

    @rule(
        behaviours=st.lists(st.sampled_from(["good", "good", "good", "bad", "not finite"]), min_size=1, max_size=9),
        operation=st.sampled_from(["embed", "tokens", "reconstruct"]),
        visible=st.integers(1, 4),
        patience=st.sampled_from([math.inf, math.inf, 0.0, 1.0, 8.0]),
        shares=st.integers(1, 3),
        is_decoded=st.booleans(),
    )
    def arrive(
        self,
        behaviours: list[Behaviour],
        operation: Operation,
        visible: int,
        patience: float,
        shares: int,
        is_decoded: bool,
    ) -> None:
        numbers = [GREY << 24 | self.images + index for index in range(len(behaviours))]  # never all bytes GREY
        self.images += len(numbers)
        self.engine.behaviours |= dict(zip(numbers, behaviours, strict=True))
        self.engine.visible |= dict.fromkeys(numbers, visible)
        client = self._on_loop(lambda: Client(self, numbers, visible, operation))
        allowed, used, limit = SHARES[:shares], self.budget.used, self.budget.limit or 0
        fits = used + len(numbers) * math.ceil(allowed[-1] * IMAGE) <= limit
        try:
            deadline = self.lanes.now + patience
            client.queued = self.scheduler.admit(operation, len(numbers), deadline, client, 1, allowed)
        except TooManyImages:
            assert len(numbers) * IMAGE > limit
        except EngineLost:
            assert self.scheduler.lost
        except QueueFull:
            assert not fits and self.budget.used == used
        else:
            assert not self.scheduler.lost and len(numbers) * IMAGE <= limit and fits
            self.clients.append(client)
            while is_decoded and len(client.put) < len(numbers):
                self._put(client, len(client.put))

    @precondition(lambda self: self._where(lambda client: len(client.put) < len(client.numbers)))
    @rule(data=st.data())
    def decode(self, data: st.DataObject) -> None:
        """An image of a request is decoded; it may have left meanwhile."""
        client = data.draw(self._choice(lambda client: len(client.put) < len(client.numbers)))
        index = data.draw(st.sampled_from(sorted({*range(len(client.numbers))} - client.put.keys())))
        if self.scheduler.lost:
            with pytest.raises(EngineLost):
                self._put(client, index)
        else:
            self._put(client, index)

    @precondition(lambda self: self.lanes.in_call)
    @rule(
        data=st.data(), outcome=st.sampled_from([None] * 6 + [EngineError("once"), MemoryError(), ValueError("fault")])
    )
    def end_call(self, data: st.DataObject, outcome: Exception | None) -> None:
        self.lanes.end_call(data.draw(st.sampled_from(self.lanes.in_call)), outcome)

    @precondition(lambda self: self.lanes.in_call)
    @rule(data=st.data(), on_grey=st.booleans(), is_rare=st.integers(0, 5))
    def lose_engine(self, data: st.DataObject, on_grey: bool, is_rare: int) -> None:
        """The device is lost, or the engine fails on grey after a batch has failed. Most schedules go on for long."""
        if is_rare == 3 or self.scheduler.lost:
            lane = data.draw(st.sampled_from(self.lanes.in_call))
            self.engine.fails_on_grey = on_grey
            self.may_be_lost = True
            self.lanes.end_call(lane, EngineError("failed") if on_grey else FatalEngineError("the device is lost"))
            self.engine.fails_on_grey = False
            assert on_grey or self.scheduler.lost

    @precondition(lambda self: self._where(lambda client: not client.has_left))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """A request is answered, or its client closes the connection."""
        self._leave(data.draw(self._choice(lambda client: not client.has_left)))

    @rule(seconds=st.sampled_from([1 / 64, 0.5, 2.0, 16.0]))
    def pass_time(self, seconds: float) -> None:
        self.lanes.advance(seconds)

    @rule()
    def pass_deadlines(self) -> None:
        """The caller enforces the deadline, as late as it may come."""
        for client in self._where(lambda client: client.queued.deadline <= self.lanes.now and not client.has_left):
            self._leave(client)

    @invariant()
    def promises_are_kept(self) -> None:
        self._on_loop(lambda: None)  # brings the results
        assert not self.faults, self.faults
        if self.images:
            self._require_budget()
            self._require_busy_lanes()
            self._require_loss()

    def _require_budget(self) -> None:
        """What waits for a batch holds room in the queue, and nothing else does."""
        assert self.budget.used == sum(client.room for client in self.clients)
        assert self.scheduler.waiting == sum(len(client.waiting) for client in self.clients if not client.has_left)

    def _require_busy_lanes(self) -> None:
        """No lane is idle while a batch is due, unless the joined lane or a step of the measurement needs its cores."""
        if self.scheduler.lost or not self.lanes.idle:
            return
        if self.engine.info.lanes in self.lanes.in_call or self.engine.measuring:
            return
        by_key: dict[object, list[float]] = defaultdict(list)
        for client in self._where(lambda client: not client.has_left):
            bound = client.visible if not self.engine.info.mixes else next(k for k in (1, 2, 4) if client.visible <= k)
            by_key[client.operation, bound] += [client.put[index] for index in client.waiting]
        for queued_at in filter(None, by_key.values()):
            assert len(queued_at) < self.engine.info.preferred_batch and min(queued_at) + self.delay > self.lanes.now

    def _require_loss(self) -> None:
        """A lost engine fails all requests, and is told once; one that fails on some images is not lost."""
        if self.scheduler.lost:
            assert self.may_be_lost
            assert len(self.losses) == 1
            for client in self._where(lambda client: not client.has_left):
                assert client.state != "waits"

    def teardown(self) -> None:
        try:
            if hasattr(self, "scheduler"):
                self._end()
        finally:
            self._patch.__exit__(None, None, None)
            self.loop.close()

    def _end(self) -> None:
        """All lanes end; every request with all its images in the queue in time has ended too."""
        self.lanes.release_all()
        self.scheduler.stop()
        self._on_loop(lambda: None)
        assert not self.faults, self.faults
        assert not self.lanes.idle and not self.lanes.in_call
        for client in self._where(lambda client: not client.has_left):
            is_whole = len(client.put) == len(client.numbers) and not client.dropped
            assert client.state != "waits" or not (is_whole or self.scheduler.lost)
            if client.state == "has results":
                assert client.results == {*range(len(client.numbers))}
            if client.state == "waits":
                assert client.results == client.taken
            self._leave(client)
        assert self.budget.used == 0

    def require(self, holds: bool, fault: str) -> None:
        """Keeps a fault that a lane sees, where an exception would end the lane alone."""
        if not holds:
            self.faults.append(fault)

    def _leave(self, client: Client) -> None:
        client.has_left = True
        self.scheduler.release(client.queued)
        self.scheduler.release(client.queued)  # as often as anybody likes
        client.close()
        self.lanes.settle()

    def _put(self, client: Client, index: int) -> None:
        number = client.numbers[index]
        patches = patches_of(number, 4 if client.operation == "reconstruct" else client.visible)
        client.put[index] = self.lanes.now
        try:
            self.scheduler.put(client.queued, index, patches, np.arange(client.visible, dtype=np.int32))
        except EngineLost:
            del client.put[index]
            raise
        self.lanes.settle()

    def _where(self, condition: Callable[[Client], bool]) -> list[Client]:
        return [client for client in self.clients if condition(client)]

    def _choice(self, condition: Callable[[Client], bool]) -> st.SearchStrategy[Client]:
        return st.sampled_from(self._where(condition))

    def _on_loop(self, call: Callable[[], Any]) -> Any:
        async def run() -> Any:
            result = call()
            await asyncio.sleep(0)
            return result

        return self.loop.run_until_complete(run())


class JoinedMachine(SchedulerMachine):
    """The same with measured seconds, a joined lane, and a measurement in steps while no request waits."""

    @initialize(
        lanes=st.integers(1, 3),
        batch=st.integers(1, 5),
        room=st.integers(1, 24),
        delay=st.sampled_from([0.0, 0.0, 0.0, 4.0]),
        curves=st.sampled_from(CURVES),
        measures=st.sampled_from(["no", "later", "now"]),
    )
    def start(self, lanes: int, batch: int, room: int, delay: float, curves: BatchCurves, measures: str) -> None:
        changes = {} if measures == "now" else {"batch_curves": curves, "joined": True}
        self._start(fake_info(lanes=lanes, preferred_batch=batch).model_copy(update=changes), room, delay)
        self.measurement = Measurement(self.engine, curves)
        self.is_measured = measures == "no"
        if measures == "now":
            self.measure()

    @precondition(lambda self: not self.is_measured)
    @rule()
    def measure(self) -> None:
        self.is_measured = True
        self.scheduler.measure(self.measurement)
        self.lanes.settle()


@pytest.mark.parametrize("machine", [SchedulerMachine, JoinedMachine])
def test_any_schedule(machine: type[SchedulerMachine], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "service")  # failures are meant
    many = settings(max_examples=3 * settings.default.max_examples, stateful_step_count=40)
    run_state_machine_as_test(machine, settings=many)
