"""What is measured after an engine is ready, and when its joined lane serves."""

import logging
import threading
from pathlib import Path

import numpy as np
import pytest

from model.arrays import Bytes, Floats, Indices
from model.engines.base import EngineBuildError, EngineInfo, MeasureStep, ServedModel
from model.engines.batch_seconds import BatchCurves
from model.engines.cache import EngineCache
from model.engines.measure import finish_measurement
from model.engines.openvino.curve_measurement import OpenVINOMeasurement
from model.engines.openvino.joined_lane import JoinedLaneCheck
from model.engines.outputs import collect_outputs
from model.engines.parity import tolerance_for
from tests.support.engines import SMALL, FakeEngine


class Joinable(FakeEngine):
    """Two lanes that may be joined; vectors that differ between images, as parity needs them."""

    def __init__(self, off_by: float = 0.0, failure: Exception | None = None) -> None:
        super().__init__(lanes=2, preferred_batch=4)
        self.joined = 0
        self.lanes_used: list[int] = []
        self._off_by, self._failure = off_by, failure

    def join_lanes(self) -> None:
        if self._failure is not None:
            raise self._failure
        self.joined += 1

    def drop_joined_lane(self) -> None:
        self.joined = 0

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        assert lane < 2 or (lane == 2 and self.joined), "there is no such lane"
        self.lanes_used.append(lane)
        vectors = patches[:, 0, :16].reshape(-1, 2, 8).astype(np.float32)
        return vectors * (1 + self._off_by * (np.arange(8) % 2)) if lane == 2 else vectors


def measurement_of(
    engine: Joinable, folder: Path, joins: bool = True, max_batch: int | None = None
) -> OpenVINOMeasurement:
    outputs = collect_outputs(engine)
    check = JoinedLaneCheck(SMALL, engine.info.computes, outputs, outputs, tolerance_for(engine.info.computes))
    engine.lanes_used.clear()
    return OpenVINOMeasurement(engine, EngineCache(folder), max_batch, check if joins else None)


def finish(measurement: OpenVINOMeasurement, seconds: float = 0.001) -> list[MeasureStep]:
    """Runs all steps, which take `seconds` per image, less on the joined lane."""
    steps = []
    while (step := measurement.next_step()) is not None:
        assert measurement.curves is None
        assert measurement.next_step() is step, "it comes again until it is recorded"
        for lane in step.lanes:
            assert step.run(lane) > 0
        steps.append(step)
        step.record(seconds * step.images * (0.6 if step.lanes == (2,) else 1))
    return steps


def test_the_engine_has_curves_and_a_joined_lane_at_the_end(tmp_path: Path) -> None:
    engine = Joinable()
    measurement = measurement_of(engine, tmp_path)
    assert measurement.is_needed and engine.info.batch_curves is None and not engine.info.joined
    measurement.prepare()
    assert engine.joined == 1 and engine.lanes_used == []
    steps = finish(measurement)
    assert engine.joined == 1
    assert {step.lanes for step in steps} == {(0, 1), (0,), (2,)}
    assert {step.operation for step in steps} == {"embed", "reconstruct"}
    info, curves = engine.info, measurement.curves
    assert info.joined and info.batch_curves == curves and curves is not None
    assert curves.shapes["embed whole"].joined == pytest.approx({1: 0.0006, 2: 0.0012, 4: 0.0024})
    assert curves.shapes["embed whole"].lone == curves.shapes["embed whole"].lanes[1] == pytest.approx(0.001)
    assert info.preferred_batch == 1


def test_a_later_start_measures_nothing_but_checks_the_joined_lane(tmp_path: Path) -> None:
    first = Joinable()
    finish(measurement_of(first, tmp_path))
    second = Joinable()
    measurement = measurement_of(second, tmp_path)
    assert measurement.is_needed and not second.info.joined
    assert second.info.preferred_batch == first.info.preferred_batch
    assert second.info.batch_curves is not None and not second.info.batch_curves.shapes["embed whole"].joined
    steps = finish(measurement)
    assert {step.lanes for step in steps} == {(2,)} and all(step.images == 1 for step in steps)
    assert second.info.joined and second.info.batch_curves == first.info.batch_curves


def test_without_a_joined_lane_a_later_start_has_nothing_to_do(tmp_path: Path) -> None:
    engine = Joinable()
    steps = finish(measurement_of(engine, tmp_path, joins=False))
    assert {step.lanes for step in steps} == {(0, 1), (0,)} and engine.joined == 0 and not engine.info.joined
    again = Joinable()
    assert not measurement_of(again, tmp_path, joins=False).is_needed
    assert again.info.batch_curves == engine.info.batch_curves


@pytest.mark.parametrize(
    ("computes", "off_by", "serves"),
    [
        ("fp32", 0.0, True),
        ("fp32", 1e-6, False),
        ("bf16", 1e-6, False),
        ("int8", 1e-6, False),
        ("emulated bf16", 1e-3, True),  # no bits are promised: the tolerance of parity counts
        ("fp16", 1e-3, True),
        ("emulated bf16", 0.5, False),
        ("fp16", float("nan"), False),
    ],
)
def test_a_joined_lane_serves_with_the_same_bits_or_within_the_tolerance(
    tmp_path: Path, computes: str, off_by: float, serves: bool, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Joinable(off_by)
    engine.info = EngineInfo.model_validate({**engine.info.model_dump(), "computes": computes})
    with caplog.at_level(logging.WARNING):
        finish(measurement_of(engine, tmp_path))
    curves = engine.info.batch_curves
    assert curves is not None and bool(curves.shapes["embed whole"].joined) == engine.info.joined == serves
    assert ("there is no joined lane" in caplog.text) != serves
    assert engine.joined == serves, "one that is refused takes no memory"
    caplog.clear()
    again = Joinable(off_by)
    again.info = EngineInfo.model_validate({**again.info.model_dump(), "computes": computes})
    assert measurement_of(again, tmp_path).is_needed == serves, "what was refused is not tried again"
    assert ("an earlier start has refused it (curves-" in caplog.text) != serves


class LargeBatchesDiffer(Joinable):
    """Whose joined lane takes other kernels for batches of four."""

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        vectors = super().embed(lane, patches, visible_indices)
        return np.nextafter(vectors, np.float32(1e9)) if lane == 2 and len(patches) == 4 else vectors


def test_the_bits_of_measured_batches_count_too(tmp_path: Path) -> None:
    engine = LargeBatchesDiffer()
    finish(measurement_of(engine, tmp_path))
    assert engine.info.batch_curves is not None and not engine.info.joined
    assert not measurement_of(LargeBatchesDiffer(), tmp_path).is_needed, "what was refused is not tried again"


@pytest.mark.parametrize("kind", [EngineBuildError, MemoryError, RuntimeError])
def test_a_lane_that_cannot_be_made_is_tried_again(
    kind: type[Exception], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Joinable(failure=kind("no memory is left"))
    with caplog.at_level(logging.WARNING):
        finish(measurement_of(engine, tmp_path))
    assert "there is no joined lane for lone images: no memory is left" in caplog.text
    assert engine.info.batch_curves is not None and not engine.info.joined
    assert measurement_of(Joinable(), tmp_path).is_needed


def test_a_measurement_that_is_abandoned_frees_the_joined_lane(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Joinable()
    measurement = measurement_of(engine, tmp_path)
    measurement.prepare()
    assert measurement.next_step() is not None and engine.joined == 1
    with caplog.at_level(logging.WARNING):
        measurement.abandon()
    assert engine.joined == 0 and not engine.info.joined
    assert "there is no joined lane for lone images: the seconds of batches are not known" in caplog.text
    assert measurement_of(Joinable(), tmp_path).is_needed, "the next start tries again"


def test_after_the_last_step_nothing_is_abandoned(tmp_path: Path) -> None:
    engine = Joinable()
    measurement = measurement_of(engine, tmp_path)
    finish(measurement)
    measurement.abandon()
    assert engine.joined == 1 and engine.info.joined


def test_the_operators_largest_batch(tmp_path: Path) -> None:
    engine = Joinable()
    steps = finish(measurement_of(engine, tmp_path, max_batch=2))
    assert max(step.images for step in steps) == 2 and engine.info.preferred_batch == 2
    engine = Joinable()
    measurement_of(engine, tmp_path, max_batch=2)
    assert engine.info.preferred_batch == 2


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = Joinable()
    with caplog.at_level(logging.WARNING):
        finish(measurement_of(engine, tmp_path / "missing"))
    assert "not kept in the engine cache" in caplog.text and engine.info.batch_curves is not None


def test_a_command_measures_all_at_once(tmp_path: Path) -> None:
    engine = Joinable()
    finish_measurement(ServedModel(engine, measurement=measurement_of(engine, tmp_path)))
    assert isinstance(engine.info.batch_curves, BatchCurves) and engine.info.joined
    finish_measurement(ServedModel(engine))


class StepsOfTwoLanes:
    """A hundred steps, which note the threads that run them."""

    curves: BatchCurves | None = None

    def __init__(self) -> None:
        self.threads: list[set[int]] = []
        self._running: set[int] = set()

    def prepare(self) -> None: ...

    def next_step(self) -> MeasureStep | None:
        return MeasureStep((0, 1), "embed", 1, self._run, self._record) if len(self.threads) < 100 else None

    def abandon(self) -> None: ...

    def _run(self, lane: int) -> float:
        self._running.add(threading.get_ident())
        return 0.001

    def _record(self, seconds: float) -> None:
        self.threads.append(self._running)
        self._running = set()


def test_a_command_runs_the_lanes_of_a_step_at_the_same_time() -> None:
    steps = StepsOfTwoLanes()
    finish_measurement(ServedModel(Joinable(), measurement=steps))
    assert [len(threads) for threads in steps.threads] == [2] * 100
