"""Which precision is chosen, given rates, and how rates are measured."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from model.engines.base import MeasuredPrecision, Precision
from model.engines.cache import EngineCache
from model.engines.measure import MIN_TURNS, TURNS, keep_choice, measure_rates, read_choice
from model.engines.openvino.precision import DOUBT, choose_precision, core_seconds, is_clear_choice
from tests.support.engines import FakeEngine

BF16 = MeasuredPrecision(precision="bf16", images_per_core_s={"fp32": 10, "bf16": 20}, left_out={})


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({"fp32": 100}, "fp32"),
        ({"fp32": 100, "bf16": 90}, "fp32"),
        ({"fp32": 100, "bf16": 104.9}, "fp32"),
        ({"fp32": 100, "bf16": 105}, "bf16"),
        ({"fp32": 100, "bf16": 170, "int8": 175}, "bf16"),
        ({"fp32": 100, "bf16": 170, "int8": 179}, "int8"),
        ({"fp32": 100, "bf16": 104, "int8": 106}, "int8"),
        ({"fp32": 100, "int8": 300}, "int8"),
        ({"int8": 300, "bf16": 299, "fp32": 100}, "bf16"),  # whatever the order
    ],
)
def test_what_lies_further_from_the_model_has_to_be_faster_by_five_percent(
    rates: Mapping[Precision, float], chosen: Precision
) -> None:
    assert choose_precision(rates) == chosen


class Clock:
    """Stands still but for what is measured; every other turn of a precision is disturbed."""

    def __init__(self, **seconds: float) -> None:
        self.now = 0.0
        self.asked: list[str] = []
        self._seconds = seconds

    def measure(self, within: float = 3.0, **how: Any) -> dict[Precision, float]:
        calls: dict[Any, Any] = {one: partial(self._turn, one) for one in self._seconds}
        return measure_rates(calls, 2, within, lambda: self.now, **how)

    def _turn(self, precision: str) -> float:
        disturbed = self.asked.count(precision) % 2 == 0
        self.asked.append(precision)
        taken = self._seconds[precision] * (3 if disturbed else 1)
        self.now += taken
        return taken


def test_the_best_turn_counts_for_all_lanes() -> None:
    clock = Clock(fp32=0.02, bf16=0.01)
    assert clock.measure() == pytest.approx({"fp32": 100, "bf16": 200})
    assert len(clock.asked) == 2 * TURNS


@pytest.mark.parametrize(("bf16", "turns"), [(0.010, MIN_TURNS), (0.0195, TURNS)])
def test_a_clear_choice_needs_few_turns(bf16: float, turns: int) -> None:
    """Twice as fast needs no more turns, and a gain near the 5 % needs them all."""
    clock = Clock(fp32=0.02, bf16=bf16)
    rates = clock.measure(is_clear=is_clear_choice)
    assert rates == pytest.approx({"fp32": 100, "bf16": 2 / bf16})
    assert len(clock.asked) == 2 * turns


@pytest.mark.parametrize(
    ("rates", "clear"),
    [
        ({"fp32": 100, "bf16": 200}, True),
        ({"fp32": 100, "bf16": 50}, True),
        ({"fp32": 100, "bf16": 105 * DOUBT**2 * 1.01}, True),
        ({"fp32": 100, "bf16": 105 * DOUBT**2 * 0.99}, False),
        ({"fp32": 100, "bf16": 105 / DOUBT**2 * 0.99}, True),
        ({"fp32": 100, "bf16": 105 / DOUBT**2 * 1.01}, False),
        ({"fp32": 100, "bf16": 200, "int8": 220}, False),
        ({"fp32": 100, "bf16": 200, "int8": 400}, True),
    ],
)
def test_a_choice_is_clear_if_no_error_of_the_rates_would_change_it(
    rates: Mapping[Precision, float], clear: bool
) -> None:
    assert is_clear_choice(rates) == clear


def test_every_lane_has_an_image_of_each_kind() -> None:
    engine = FakeEngine(lanes=2)
    assert core_seconds(engine) > 0
    assert sorted((visible, len(images)) for _, visible, images in engine.batches) == [(1, 1), (1, 1), (4, 1), (4, 1)]


def test_precisions_take_turns_every_other_one_backwards() -> None:
    clock = Clock(fp32=0.02, bf16=0.01, int8=0.01)
    clock.measure()
    assert clock.asked[:6] == ["fp32", "bf16", "int8", "int8", "bf16", "fp32"]


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.3])
def test_measuring_ends_in_time(seconds: float) -> None:
    clock = Clock(fp32=seconds, bf16=seconds)
    clock.measure()
    assert clock.now <= 3


def test_each_is_measured_once_however_slow() -> None:
    clock = Clock(fp32=60, bf16=30)
    assert clock.measure()["bf16"] == pytest.approx(2 / 90)
    assert clock.asked == ["fp32", "bf16"]


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"precision": "fp64"}', '{"precision": "bf16"}', "\x00"])
def test_a_choice_that_cannot_be_read_is_none(tmp_path: Path, damage: str) -> None:
    cache = EngineCache(tmp_path)
    assert read_choice(cache, "choice", MeasuredPrecision) is None
    assert keep_choice(cache, "choice", BF16) == BF16
    assert read_choice(cache, "choice", MeasuredPrecision) == BF16
    (tmp_path / "choice.json").write_text(damage)
    assert read_choice(cache, "choice", MeasuredPrecision) is None


def test_whoever_has_measured_first_decides_for_all(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    keep_choice(cache, "choice", BF16)
    assert keep_choice(cache, "choice", BF16.model_copy(update={"precision": "fp32"})) == BF16
    assert read_choice(cache, "choice", MeasuredPrecision) == BF16


def test_the_reason_is_one_line() -> None:
    found = BF16.model_copy(update={"left_out": {"int8": "embeddings differ"}})
    assert found.reason == "images per core-second: fp32 10, bf16 20; int8 left out: embeddings differ"
    alone = MeasuredPrecision(precision="fp32", images_per_core_s={}, left_out={})
    assert alone.reason == "there is nothing to compare it with"
