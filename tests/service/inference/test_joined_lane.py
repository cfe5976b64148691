"""The joined lane and the measurement of batches, with lanes in virtual time: what runs beside what, and who waits."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from model.checkpoints.heads import Heads
from model.engines.base import EngineError, FatalEngineError
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


@pytest.fixture
def lanes() -> Iterator[VirtualLanes]:
    lanes = VirtualLanes()
    with lanes.patch_modules():
        yield lanes


@pytest.fixture
def machine(lanes: VirtualLanes) -> Iterator[Machine]:
    machine = Machine(lanes)
    yield machine
    machine.close()


def test_a_lone_image_runs_on_the_joined_lane_and_counts_as_all_lanes(machine: Machine) -> None:
    sink, _ = machine.send()
    assert machine.lanes.in_call == [JOINED] and machine.busy == 2
    machine.lanes.advance(0.5)
    machine.lanes.end_call(JOINED)
    machine.on_loop(lambda: None)
    assert len(sink.results) == 1 and machine.busy == 0


def test_what_comes_meanwhile_waits_for_its_end_and_then_gets_all_lanes(machine: Machine) -> None:
    machine.send()
    sinks = [machine.send()[0] for _ in range(9)]
    machine.lanes.advance(0.5)
    assert machine.lanes.in_call == [JOINED]
    machine.lanes.end_call(JOINED)
    assert machine.lanes.in_call == [0, 1] and machine.busy == 2
    machine.lanes.release_all()
    machine.on_loop(lambda: None)
    assert [len(sink.results) for sink in sinks] == [1] * 9


def test_the_joined_lane_waits_until_no_lane_is_busy(machine: Machine) -> None:
    machine.send(9)
    assert machine.lanes.in_call == [0, 1]
    for _ in range(100):
        if len(machine.lanes.in_call) < 2:
            break
        machine.lanes.end_call(0 if 0 in machine.lanes.in_call else 1)
    assert len(machine.lanes.in_call) == 1
    machine.send()
    assert machine.lanes.in_call == [0, 1], "the idle lane takes it, beside the other"
    for of in (0, 1):
        machine.lanes.end_call(of)
    machine.lanes.advance(1000.0)
    machine.send()
    assert machine.lanes.in_call == [JOINED]


def test_a_request_of_several_images_uses_both_lanes(machine: Machine) -> None:
    machine.send(6)
    assert machine.lanes.in_call == [0, 1]
    assert machine.scheduler.waiting == 4, "each lane has one image, and none has a batch that the other could share"


def test_an_image_fails_alone_on_the_joined_lane(machine: Machine) -> None:
    sink, _ = machine.send()
    machine.lanes.end_call(JOINED, EngineError("once"))
    assert machine.lanes.in_call == [JOINED], "it is tried again, on the same lane"
    machine.lanes.end_call(JOINED)
    machine.on_loop(lambda: None)
    assert len(sink.results) == 1 and machine.busy == 0


def test_a_lost_device_ends_all(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "service")
    first, second = machine.send()[0], machine.send()[0]
    machine.lanes.end_call(JOINED, FatalEngineError("the device is lost"))
    machine.on_loop(lambda: None)
    assert first.failures and second.failures and len(machine.lost) == 1
    assert machine.lanes.idle == 0


def test_a_drain_ends_after_the_joined_lane(machine: Machine) -> None:
    sink, _ = machine.send()
    other, _ = machine.send()
    machine.close = lambda: None  # type: ignore[method-assign]
    machine.lanes.is_free = True
    machine.lanes.end_call(JOINED)
    machine.scheduler.stop()
    machine.on_loop(lambda: None)
    assert len(sink.results) == len(other.results) == 1 and not machine.engine.faults
    machine.loop.close()


def test_with_max_delay_batches_fill_and_lanes_stay_apart(lanes: VirtualLanes) -> None:
    machine = Machine(lanes, max_delay_s=2.0)
    machine.send()
    assert not lanes.in_call
    machine.send(3)
    assert len(lanes.in_call) == 1 and JOINED not in lanes.in_call
    machine.close()


# --- drift beside the joined lane


def test_no_sample_is_measured_beside_the_joined_lane_and_none_beside_a_sample(lanes: VirtualLanes) -> None:
    machine = Machine(lanes, drift=True)
    patches = patches_of(1 << 24, 4)
    machine.engine.behaviours[1 << 24], machine.engine.visible[1 << 24] = "good", 1
    machine.send()
    machine.scheduler.sample(np.repeat(patches, 1, axis=0))
    lanes.settle()
    assert lanes.in_call == [JOINED]
    lanes.end_call(JOINED)
    assert len(lanes.in_call) == 1 and JOINED not in lanes.in_call, "the sample"
    [of_sample] = lanes.in_call
    machine.send()
    assert lanes.in_call == [0, 1], "beside the sample, an image runs on the other lane"
    machine.engine.faults.clear()  # the sample has patches that the engine has seen
    lanes.end_call(1 - of_sample)
    lanes.end_call(of_sample)
    machine.engine.faults.clear()
    machine.close()


# --- the measurement


@pytest.fixture
def unmeasured(lanes: VirtualLanes) -> Iterator[Machine]:
    machine = Machine(lanes, info={"batch_curves": None, "joined": False})
    yield machine
    machine.close()


def test_steps_run_on_their_lanes_at_once_and_then_the_curves_count(unmeasured: Machine) -> None:
    measurement = unmeasured.measure()
    unmeasured.end_step(0, 1, seconds=0.25)
    unmeasured.end_step(1, seconds=0.5)
    unmeasured.end_step(JOINED, seconds=0.75)
    unmeasured.end_step(0, 1, seconds=1.0)
    assert measurement.recorded == [0.25, 0.5, 0.75, 1.0] and not unmeasured.lanes.in_call
    unmeasured.send()
    assert unmeasured.lanes.in_call == [JOINED]


def test_a_request_waits_for_one_step_which_is_tried_again_after_a_pause(unmeasured: Machine) -> None:
    measurement = unmeasured.measure()
    sink, _ = unmeasured.send()
    assert unmeasured.lanes.in_call == [0, 1], "the step"
    unmeasured.end_step(0, 1)
    assert unmeasured.lanes.in_call in ([0], [1]), "the image"
    unmeasured.lanes.end_call(*unmeasured.lanes.in_call)
    unmeasured.on_loop(lambda: None)
    assert len(sink.results) == 1 and not measurement.recorded and not unmeasured.lanes.in_call
    unmeasured.lanes.advance(1.0)
    unmeasured.end_step(0, 1, seconds=0.5)
    assert measurement.recorded == [0.5]


def test_a_step_that_is_always_disturbed_counts_in_the_end(unmeasured: Machine) -> None:
    measurement = unmeasured.measure()
    for pause in (1.0, 2.0, 4.0, None):
        assert unmeasured.lanes.in_call == [0, 1], "the step"
        unmeasured.send()
        unmeasured.end_step(0, 1, seconds=0.5)
        assert len(unmeasured.lanes.in_call) == 1, "the image"
        if pause is None:
            break
        unmeasured.lanes.end_call(*unmeasured.lanes.in_call)
        assert not measurement.recorded and not unmeasured.lanes.in_call
        unmeasured.lanes.advance(pause)
    assert measurement.recorded == [0.5]


def test_no_step_begins_while_a_lane_is_busy_or_an_image_is_decoded(unmeasured: Machine) -> None:
    unmeasured.send()
    sink = Sink()
    decoding = unmeasured.scheduler.admit("embed", 1, float("inf"), sink)
    measurement = unmeasured.measure()
    [lane] = unmeasured.lanes.in_call
    unmeasured.lanes.end_call(lane)
    assert not unmeasured.lanes.in_call and not measurement.recorded
    unmeasured.scheduler.release(decoding)
    unmeasured.send()
    assert len(unmeasured.lanes.in_call) == 1
    unmeasured.lanes.end_call(*unmeasured.lanes.in_call)
    unmeasured.end_step(0, 1)
    assert measurement.recorded == [0.25]


def test_no_step_begins_beside_a_batch(unmeasured: Machine) -> None:
    unmeasured.send()
    unmeasured.measure()
    assert len(unmeasured.lanes.in_call) == 1
    unmeasured.lanes.end_call(*unmeasured.lanes.in_call)
    assert unmeasured.lanes.in_call == [0, 1]


def test_no_step_begins_beside_a_sample_of_drift(lanes: VirtualLanes) -> None:
    machine = Machine(lanes, drift=True, info={"batch_curves": None, "joined": False})
    machine.engine.behaviours[1 << 24], machine.engine.visible[1 << 24] = "good", 1
    machine.scheduler.sample(patches_of(1 << 24, 4))
    lanes.settle()
    [of_sample] = lanes.in_call
    machine.measure()
    assert lanes.in_call == [of_sample]
    lanes.end_call(of_sample)
    assert lanes.in_call == [0, 1]
    machine.engine.faults.clear()  # the patches of the sample are not those of an image
    machine.close()


def test_a_step_that_fails_ends_the_measurement(unmeasured: Machine, caplog: pytest.LogCaptureFixture) -> None:
    measurement = unmeasured.measure()
    unmeasured.lanes.end_call(0, EngineError("no memory"))
    unmeasured.lanes.end_call(1)
    assert not unmeasured.lanes.in_call and not measurement.recorded
    assert "no memory" in caplog.text
    unmeasured.send(4)
    assert len(unmeasured.lanes.in_call) <= 2 and JOINED not in unmeasured.lanes.in_call


@pytest.mark.parametrize("when", ["first", "later"])
def test_a_measurement_that_fails_between_its_steps_ends_alone(
    unmeasured: Machine, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    measurement = Measurement(unmeasured.engine, CURVES)
    next_step = measurement.next_step

    def fail() -> None:
        if when == "first" or measurement.recorded:
            raise OSError("the disk is full")
        return next_step()

    measurement.next_step = fail  # type: ignore[method-assign, assignment]
    unmeasured.scheduler.measure(measurement)
    unmeasured.lanes.settle()
    if when == "later":
        unmeasured.end_step(0, 1)
    assert not unmeasured.lanes.in_call and "the disk is full" in caplog.text
    sink, _ = unmeasured.send()
    unmeasured.lanes.end_call(*unmeasured.lanes.in_call)
    unmeasured.on_loop(lambda: None)
    assert len(sink.results) == 1 and not unmeasured.lost


def test_a_device_that_is_lost_in_a_step_ends_all(unmeasured: Machine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "service")
    unmeasured.measure()
    sink, _ = unmeasured.send()
    unmeasured.lanes.end_call(0, FatalEngineError("the device is lost"))
    unmeasured.lanes.end_call(1)
    unmeasured.on_loop(lambda: None)
    assert sink.failures and unmeasured.lost


def test_a_drain_waits_for_the_step_that_runs_and_begins_no_other(unmeasured: Machine) -> None:
    measurement = unmeasured.measure()
    unmeasured.scheduler.stop(seconds=0)
    unmeasured.end_step(0, 1)
    assert measurement.recorded == [0.25] and not unmeasured.lanes.in_call and not unmeasured.lanes.idle
