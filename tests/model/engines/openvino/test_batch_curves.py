"""Which batch is preferred, and that it is measured once."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from model.engines.cache import EngineCache
from model.engines.openvino import batch_size as module
from model.engines.openvino.batch_size import SIZES, choose_batch_size, obtain_batch_size, warm_up
from tests.support.engines import FakeEngine


class Clock:
    """Stands still but for what batches take."""

    def __init__(self, call_s: float, image_s: float) -> None:
        self.now = 0.0
        self.asked: list[int] = []
        self._call_s, self._image_s = call_s, image_s

    def seconds(self, size: int) -> float:
        self.asked.append(size)
        taken = self._call_s + self._image_s * size
        self.now += taken
        return taken

    def choose(self, within: float = 3.0) -> module.MeasuredBatchSize:
        return choose_batch_size(self.seconds, 2, within, lambda: self.now)


@pytest.mark.parametrize(
    ("call_s", "image_s", "batch"),
    [
        (0, 0.001, 1),  # an image costs the same in any batch
        (0.0001, 0.001, 4),  # 1.1, 1.05, 1.025, 1.0125: two is 3.7 % from the best, four is 1.2 %
        (0.01, 0.0001, 16),  # the call is all
    ],
)
def test_the_smallest_batch_near_the_best(call_s: float, image_s: float, batch: int) -> None:
    assert Clock(call_s, image_s).choose().batch == batch


def test_rates_are_those_of_all_lanes() -> None:
    assert Clock(0, 0.001).choose().rates[1] == pytest.approx(2000)


def test_larger_batches_are_tried_as_long_as_they_pay() -> None:
    clock = Clock(0, 0.001)
    clock.choose()
    assert max(clock.asked) == 4
    clock = Clock(0.01, 0.0001)
    clock.choose()
    assert set(clock.asked) == set(SIZES)


@pytest.mark.parametrize("image_s", [0.02, 0.2, 0.5, 1.4])
def test_measuring_ends_in_time(image_s: float) -> None:
    clock = Clock(image_s, image_s)
    clock.choose(3.0)
    assert clock.now <= 3.0


def test_one_batch_is_measured_however_slow() -> None:
    assert Clock(0, 60).choose().batch == 1


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    clock = Clock(0, 0.001)
    monkeypatch.setattr(module, "time_batch", lambda engine, size: clock.seconds(size))
    return clock.asked


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", '{"batch": 0, "rates": {}}', '{"batch": "x"}', '{"batch": 1000000000, "rates": {}}', "\x00"],
)
def test_it_is_measured_once_and_again_if_the_file_is_damaged(tmp_path: Path, measured: list[int], damage: str) -> None:
    engine, cache = FakeEngine(), EngineCache(tmp_path)
    assert obtain_batch_size(engine, cache, print) == 1
    count = len(measured)
    assert count > 0
    assert obtain_batch_size(engine, cache, print) == 1
    assert len(measured) == count
    (sidecar,) = tmp_path.iterdir()
    sidecar.write_text(damage)
    assert obtain_batch_size(engine, cache, print) == 1
    assert len(measured) == 2 * count


@pytest.mark.parametrize(
    "change",
    [{"lanes": 2}, {"precision": "bf16"}, {"computes": "bf16"}, {"entry": "another"}, {"versions": {"a": "2"}}],
)
def test_another_engine_is_measured_for_itself(tmp_path: Path, measured: list[int], change: dict[str, object]) -> None:
    engine, cache = FakeEngine(), EngineCache(tmp_path)
    obtain_batch_size(engine, cache, print)
    count = len(measured)
    engine.info = engine.info.model_copy(update=change)
    obtain_batch_size(engine, cache, print)
    assert len(measured) == 2 * count


def test_another_cpu_is_measured_for_itself(
    tmp_path: Path, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    obtain_batch_size(FakeEngine(), EngineCache(tmp_path), print)
    count = len(measured)
    monkeypatch.setattr(module, "cpu_name", lambda: "another")
    obtain_batch_size(FakeEngine(), EngineCache(tmp_path), print)
    assert len(measured) == 2 * count


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, measured: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert obtain_batch_size(FakeEngine(), EngineCache(tmp_path / "missing"), print) == 1
    assert "not kept in the engine cache" in caplog.text


def test_every_lane_is_busy_with_both_usual_shapes(clockwork: Callable[[], float]) -> None:
    engine = FakeEngine(preferred_batch=3, lanes=2)
    warm_up(engine, 100, clockwork)
    shapes = sorted((visible, len(images)) for _, visible, images in engine.batches)
    assert shapes == sorted([(k, size) for k in (1, 4) for size in (1, 2, 3)] * 2)


def test_warming_up_ends_in_time() -> None:
    times = iter([0.0, 0.0, 1.0, 1.0])
    engine = FakeEngine(preferred_batch=3)
    warm_up(engine, 0.5, lambda: next(times))
    assert {len(images) for _, _, images in engine.batches} == {1}


@pytest.fixture
def clockwork() -> Callable[[], float]:
    return lambda: 0.0
