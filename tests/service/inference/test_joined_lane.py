"""The joined lane, with lanes in virtual time: what runs beside what, and who waits."""

import logging
from collections.abc import Iterator

import numpy as np
import pytest

from model.engines.base import EngineError, FatalEngineError
from tests.service.inference.joined_machine import JOINED, Machine
from tests.service.inference.numbered_images import patches_of
from tests.support.virtual_lanes import VirtualLanes


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
