"""Which batches are measured, which one is preferred, and what is kept."""

from collections.abc import Callable
from pathlib import Path

import pytest

from model.engines.batch_seconds import BatchCurves, BatchSeconds
from model.engines.cache import EngineCache
from model.engines.openvino import batch_curves as module
from model.engines.openvino.batch_curves import (
    SIZES,
    Batch,
    CurvePlan,
    choose_batch,
    curves_name,
    read_curves,
    shapes_of,
)
from tests.support.engines import SMALL, fake_info

SHAPES = shapes_of(SMALL)
Seconds = Callable[[Batch], float]


def linear(call_s: float, image_s: float) -> Seconds:
    return lambda batch: call_s + image_s * batch.size


def measure(seconds: Seconds, joined: bool = True, max_size: int = SIZES[-1]) -> tuple[CurvePlan, list[Batch]]:
    plan, asked = CurvePlan(SHAPES, joined, max_size), []
    while plan.current is not None:
        asked.append(plan.current)
        plan.record(seconds(plan.current))
    return plan, asked


def sizes(asked: list[Batch], shape: str = "embed whole") -> set[int]:
    return {batch.size for batch in asked if batch.shape == shape}


@pytest.mark.parametrize(
    ("call_s", "image_s", "batch"),
    [
        (0, 0.001, 1),  # an image costs the same in any batch
        (0.0001, 0.001, 4),  # 1.1, 1.05, 1.025, 1.0125: two is 3.7 % from the best, four is 1.2 %
        (0.01, 0.0001, 16),  # the call is all
    ],
)
def test_the_smallest_batch_near_the_best(call_s: float, image_s: float, batch: int) -> None:
    assert choose_batch(measure(linear(call_s, image_s))[0].curves()) == batch


def test_the_shape_with_the_largest_batch_decides() -> None:
    def seconds(batch: Batch) -> float:
        return linear(0.01, 0.0001)(batch) if batch.shape == "reconstruct quarter" else linear(0, 0.001)(batch)

    plan, asked = measure(seconds)
    assert choose_batch(plan.curves()) == 16
    assert max(sizes(asked)) == 4 and max(sizes(asked, "reconstruct quarter")) == 16


def test_larger_batches_are_tried_as_long_as_they_pay() -> None:
    assert max(sizes(measure(linear(0, 0.001))[1])) == 4
    assert sizes(measure(linear(0.01, 0.0001))[1]) == set(SIZES)


def test_a_gain_of_the_joined_lane_is_enough() -> None:
    def seconds(batch: Batch) -> float:
        return linear(0.01, 0.0001)(batch) if batch.mode == "joined" else linear(0, 0.001)(batch)

    assert sizes(measure(seconds)[1]) == set(SIZES)


@pytest.mark.parametrize("image_s", [0.001, 0.02, 0.03, 0.07, 0.12])
def test_measuring_takes_six_seconds_at_most_and_short_steps(image_s: float) -> None:
    spent = 0.0

    def seconds(batch: Batch) -> float:
        nonlocal spent
        taken = linear(0, image_s)(batch)
        assert taken <= 0.25
        spent += taken
        return taken

    measure(seconds)
    assert spent <= 6.0


def test_a_long_batch_of_one_shape_is_left_out() -> None:
    def seconds(batch: Batch) -> float:
        return linear(0.01, 0.14 if batch.shape == "embed whole" else 0.0001)(batch)

    _, asked = measure(seconds)
    assert sizes(asked) == {1} and 4 in sizes(asked, "embed quarter")


def test_a_large_model_has_one_turn_of_one_image() -> None:
    _, asked = measure(linear(0, 2.0))
    assert sorted(asked) == sorted(Batch(shape, mode, 1) for shape in SHAPES for mode in ("lanes", "lone", "joined"))


def test_a_size_that_had_one_turn_does_not_count() -> None:
    """It took longer than was expected, and the time is over."""

    def seconds(batch: Batch) -> float:
        return 0.02 if batch.size == 1 else 0.45

    plan, asked = measure(seconds)
    assert sizes(asked) == {1, 2}
    assert set(plan.curves().shapes["embed whole"].lanes) == set(plan.curves().shapes["embed whole"].joined) == {1}


def test_every_turn_goes_through_all_batches_there_or_back() -> None:
    _, asked = measure(linear(0, 0.001))
    first, second = asked[:9], asked[9:18]
    assert set(first) == set(second) and second == first[::-1]


def test_single_images_that_are_slow_in_all_their_turns_are_measured_again_beside_batches() -> None:
    calls = 0

    def seconds(batch: Batch) -> float:
        nonlocal calls
        calls += batch.mode == "lanes"
        return 0.001 * batch.size * (1.3 if batch.mode == "lanes" and calls <= 6 * len(SHAPES) else 1)

    curve = measure(seconds)[0].curves().shapes["embed whole"]
    assert curve.lanes == pytest.approx({1: 0.001, 2: 0.002, 4: 0.004}) and curve.lone == 0.001


def test_the_fastest_turn_counts() -> None:
    disturbed = iter([9.0])  # the very first batch

    def seconds(batch: Batch) -> float:
        return next(disturbed, linear(0, 0.001)(batch))

    # nine seconds are more than there are: the turn is finished, and there is no other
    assert measure(seconds)[0].curves().shapes["embed whole"].lanes == {1: 9.0}
    turns = iter([0.2, 0.01])

    def slow_once(batch: Batch) -> float:
        return next(turns, 0.02) if batch == Batch("embed whole", "lone", 1) else linear(0, 0.001)(batch)

    assert measure(slow_once)[0].curves().shapes["embed whole"].lone == 0.01


def test_without_a_joined_lane_and_with_a_largest_batch() -> None:
    plan, asked = measure(linear(0.01, 0.0001), joined=False, max_size=6)
    assert not any(batch.mode == "joined" for batch in asked) and sizes(asked) == {1, 2, 4}
    assert all(seconds.joined == {} for seconds in plan.curves().shapes.values())


def test_shapes_of_a_model_without_a_decoder() -> None:
    config = SMALL.model_copy(update={"decoder_depth": 0, "decoder_embed_dim": 0})
    assert not config.has_decoder and shapes_of(config) == ("embed whole", "embed quarter")


def curves(**changes: object) -> BatchCurves:
    seconds = {"lone": 0.1, "lanes": {1: 0.1, 2: 0.2}, "joined": {1: 0.05}, **changes}
    return BatchCurves(shapes=dict.fromkeys(SHAPES, BatchSeconds.model_validate(seconds)))


@pytest.mark.parametrize(
    "damaged",
    [
        curves(lanes={}),
        curves(lanes={2: 0.1}),
        curves(lanes={1: 0.1, 1_000_000_000: 0.1}),
        curves(lanes={1: 0.0}),
        curves(lone=-1.0),
        curves(joined={2: 0.1}),
        BatchCurves(shapes={"embed whole": curves().shapes["embed whole"]}),
    ],
)
def test_what_cannot_have_been_measured_is_not_read(tmp_path: Path, damaged: BatchCurves) -> None:
    cache = EngineCache(tmp_path)
    cache.write_sidecar("curves", curves().model_dump(mode="json"))
    assert read_curves(cache, "curves", SHAPES) == curves()
    cache.write_sidecar("curves", damaged.model_dump(mode="json"))
    assert read_curves(cache, "curves", SHAPES) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"shapes": 1}', '{"batch": 4, "rates": {}}', "\x00"])
def test_a_damaged_file_is_not_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "curves.json").write_text(text)
    assert read_curves(EngineCache(tmp_path), "curves", SHAPES) is None


@pytest.mark.parametrize(
    "change",
    [{"lanes": 2}, {"precision": "bf16"}, {"computes": "bf16"}, {"entry": "another"}, {"versions": {"a": "2"}}],
)
def test_another_engine_has_another_name(change: dict[str, object]) -> None:
    info = fake_info()
    assert curves_name(info, True, 16) == curves_name(info.model_copy(update={"notes": ("a",)}), True, 16)
    assert curves_name(info, True, 16) != curves_name(info.model_copy(update=change), True, 16)


def test_so_have_another_cpu_and_other_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {curves_name(fake_info(), joined, size) for joined in (True, False) for size in (16, 4)}
    assert len(names) == 4
    monkeypatch.setattr(module, "cpu_name", lambda: "another")
    assert curves_name(fake_info(), True, 16) not in names
