"""The measurement of batches on lanes in virtual time: when a step runs, and who waits for it."""

import logging
from collections.abc import Iterator

import pytest

from model.engines.base import EngineError, FatalEngineError
from tests.service.inference.joined_machine import CURVES, JOINED, Machine, Sink
from tests.service.inference.numbered_images import Measurement, patches_of
from tests.support.virtual_lanes import VirtualLanes


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
    assert not measurement.is_abandoned
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
    assert "no memory" in caplog.text and measurement.is_abandoned
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
    assert not unmeasured.lanes.in_call and "the disk is full" in caplog.text and measurement.is_abandoned
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
