"""Which mode torch runs in, given rates, and how rates are measured."""

from collections.abc import Mapping
from typing import Any

import pytest

from model.engines import measure
from model.engines.base import MeasuredMode
from model.engines.cuda.torch_mode import allowed_modes, choose_mode, measure_modes
from tests.support.engines import FakeEngine


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({"eager": {1: 100, 64: 1000}}, "eager"),
        ({"eager": {1: 100, 64: 1000}, "cuda graphs": {1: 104, 64: 1040}}, "eager"),
        ({"eager": {1: 100, 64: 1000}, "cuda graphs": {1: 200, 64: 1000}}, "cuda graphs"),
        ({"eager": {1: 100, 64: 1000}, "cuda graphs": {1: 200, 64: 500}}, "eager"),  # the geometric mean is the same
        ({"cuda graphs": {1: 200, 64: 1000}, "compile": {1: 200, 64: 1300}}, "compile"),
        ({"compile": {1: 208, 64: 1000}, "cuda graphs": {1: 200, 64: 1000}, "eager": {1: 10, 64: 900}}, "cuda graphs"),
    ],
)
def test_a_mode_has_to_beat_all_simpler_ones_by_five_percent(rates: Mapping[Any, Any], chosen: str) -> None:
    assert choose_mode(rates) == chosen


def test_cuda_graphs_names_a_mode_or_leaves_it_to_measurement() -> None:
    assert allowed_modes(None) == ("eager", "cuda graphs", "compile")
    assert (allowed_modes(True), allowed_modes(False)) == (("cuda graphs",), ("eager",))


def test_single_images_and_the_largest_batches_are_measured_on_all_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of each kind on two lanes in 10 ms, and 2 x 8 of each kind in 20 ms."""
    engines: dict[Any, FakeEngine] = {"eager": FakeEngine(8, lanes=2), "compile": FakeEngine(8, lanes=2)}
    seconds = {("eager", 1): 0.01, ("eager", 8): 0.02, ("compile", 1): 0.005, ("compile", 8): 0.01}
    names = {id(engine): mode for mode, engine in engines.items()}
    asked: list[tuple[str, int]] = []

    def time_batch(engine: FakeEngine, size: int) -> float:
        asked.append((names[id(engine)], size))
        return seconds[asked[-1]]

    monkeypatch.setattr("model.engines.cuda.torch_mode.time_batch", time_batch)
    rates = measure_modes(engines)
    assert rates["eager"] == pytest.approx({1: 400, 8: 1600})
    assert rates["compile"] == pytest.approx({1: 800, 8: 3200})
    assert asked[:4] == [("eager", 1), ("compile", 1), ("compile", 1), ("eager", 1)]
    assert len(asked) == 4 * measure.TURNS


def test_the_reason_is_one_line() -> None:
    choice = MeasuredMode(
        mode="cuda graphs",
        images_per_s={"eager": {1: 150.4, 64: 9000}, "cuda graphs": {1: 800, 64: 9100}},
        left_out={"compile": "there is no C compiler"},
    )
    assert choice.reason == (
        "images/s in batches of 1 and 64: eager 150 and 9e+03, cuda graphs 800 and 9.1e+03; "
        "compile left out: there is no C compiler"
    )
    alone = MeasuredMode(mode="eager", images_per_s={}, left_out={})
    assert alone.reason == "there is nothing to compare it with"
