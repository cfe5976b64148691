"""A scheduler of two lanes and a joined one, in virtual time."""

import asyncio
from typing import Any

from model.checkpoints.heads import Heads
from model.engines.batch_seconds import BatchCurves, BatchSeconds
from service.inference.batch_scheduler import BatchScheduler
from service.inference.drift import DriftMonitor
from service.inference.limits import IMAGE, LocalBudget
from service.inference.queue import QueuedRequest
from service.metrics import Metrics
from tests.service.inference.numbered_images import Engine, Measurement, patches_of
from tests.support.engines import fake_info
from tests.support.metrics import sample
from tests.support.queueing import ALL_FOUR
from tests.support.virtual_lanes import VirtualLanes

SECONDS = BatchSeconds(lone=0.9, lanes={1: 1.0, 4: 3.84}, joined={1: 0.6})
CURVES = BatchCurves(shapes={"embed whole": SECONDS, "embed quarter": SECONDS, "reconstruct quarter": SECONDS})
JOINED = 2
"""The number of the joined lane."""


class Sink:
    """Counts the results of a request."""

    def __init__(self) -> None:
        self.results: list[Any] = []
        self.failures: list[Any] = []

    def on_taken(self, entries: Any) -> None: ...

    def on_dropped(self, entries: Any) -> None: ...

    def on_result(self, index: int, result: Any, queue_s: float, infer_s: float) -> None:
        self.results.append(result)

    def on_failed(self, error: Any) -> None:
        self.failures.append(error)


class Machine:
    """A scheduler of two lanes and a joined one."""

    def __init__(self, lanes: VirtualLanes, **options: Any) -> None:
        self.lanes, self.loop, self.metrics = lanes, asyncio.new_event_loop(), Metrics()
        changes: dict[str, Any] = {"batch_curves": CURVES, "joined": True} | options.pop("info", {})
        info = fake_info(lanes=2, preferred_batch=4).model_copy(update=changes)
        self.engine = Engine(lanes, info)
        self.images = 0
        engine: Any = self.engine
        if options.pop("drift", False):
            options["drift"] = DriftMonitor(engine, Heads(), self.metrics)
        self.budget = LocalBudget(64 * IMAGE)
        self.lost: list[str] = []
        self.scheduler = BatchScheduler(engine, self.metrics, self.budget, on_lost=self.lost.append, **options)
        self.on_loop(self.scheduler.start)
        lanes.settle()

    def send(self, count: int = 1) -> tuple[Sink, QueuedRequest]:
        """A request with images that are all decoded."""
        sink = Sink()
        request = self.scheduler.admit("embed", count, float("inf"), sink)
        for index in range(count):
            number = 1 << 24 | self.images
            self.images += 1
            self.engine.behaviours[number], self.engine.visible[number] = "good", 4
            self.scheduler.put(request, index, patches_of(number, 4), ALL_FOUR)
        self.lanes.settle()
        return sink, request

    def on_loop(self, call: Any) -> None:
        async def run() -> None:
            call()
            await asyncio.sleep(0)

        self.loop.run_until_complete(run())

    def measure(self) -> Measurement:
        measurement = Measurement(self.engine, CURVES)
        self.scheduler.measure(measurement)
        self.lanes.settle()
        return measurement

    def end_step(self, *lanes: int, seconds: float = 0.25) -> None:
        """The step that runs on these lanes ends after some time."""
        assert self.lanes.in_call == list(lanes)
        self.lanes.advance(seconds)
        for lane in lanes:
            self.lanes.end_call(lane)

    @property
    def busy(self) -> float:
        return sample(self.metrics.render(), "mae_lanes_busy")

    def close(self) -> None:
        self.lanes.release_all()
        self.scheduler.stop()
        self.on_loop(lambda: None)
        self.loop.close()
        assert not self.engine.faults
        assert not self.lanes.idle
