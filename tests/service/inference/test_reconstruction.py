"""Masks of requests: drawn by a seed, listed, or painted; against sets and NumPy."""

import io
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.arrays import Indices
from model.config import MAEConfig, Preprocessing
from model.masking import MAX_SEED
from service.errors import InvalidParameter
from service.inference.image_decoder import DecodedImage, ImageDecoder
from service.inference.passes import Inference
from service.inference.reconstruction import (
    MaskPlan,
    Reconstruction,
    choose_patches_by_picture,
    choose_patches_to_remove,
    mean_of_draws,
)
from service.parameters import ReconstructParameters

CONFIG = MAEConfig(image_size=64, patch_size=16, embed_dim=8, depth=1, num_heads=1, decoder_depth=0)
"""4 x 4 patches."""
ALL = set(range(16))
DECODER = ImageDecoder(CONFIG, Preprocessing(), 10_000)


def encoded(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def image() -> DecodedImage:
    return DECODER.decode(encoded(np.zeros((64, 64, 3), np.uint8)), 0)


def picture(white: set[int]) -> bytes:
    patches = np.isin(np.arange(16).reshape(4, 4), list(white)).astype(np.uint8) * 255
    return encoded(np.kron(patches, np.ones((16, 16), np.uint8)))


def visible_by(plan: MaskPlan) -> Sequence[Indices]:
    """The visible patches of each pass of an image."""
    return Inference("reconstruct", plan.visible_by_pass).choose_visible(image(), 0)


def by_picture(white: set[int], count: int = 1, **parameters: Any) -> set[int]:
    plan = choose_patches_by_picture(CONFIG, DECODER, ReconstructParameters(**parameters), picture(white), count)
    [visible] = visible_by(plan)
    return set(visible.tolist())


def by_parameters(**parameters: Any) -> tuple[int | None, list[int]]:
    plan = choose_patches_to_remove(CONFIG, ReconstructParameters(**parameters))
    [visible] = visible_by(plan)
    return plan.seed, visible.tolist()


def test_a_seed_draws_the_same_mask_again() -> None:
    seed, visible = by_parameters(mask_ratio=0.5)
    assert seed is not None and len(visible) == 8
    assert by_parameters(mask_ratio=0.5, seed=seed) == (seed, visible)
    assert by_parameters(mask_ratio=0.5, seed=seed, strategy="grid")[1] != visible


def test_each_draw_has_the_mask_of_the_next_seed() -> None:
    plan = choose_patches_to_remove(CONFIG, ReconstructParameters(seed=MAX_SEED - 1, draws=4))
    assert plan.seeds == (MAX_SEED - 1, MAX_SEED, 0, 1) and plan.draws == 4
    for seed, visible in zip(plan.seeds, visible_by(plan), strict=True):
        assert by_parameters(seed=seed) == (seed, visible.tolist())


def draw_of(pixels: np.ndarray, error: list[float], visible: list[int]) -> Reconstruction:
    original = np.zeros((4, 12), np.uint8)
    return Reconstruction(original, pixels, np.array(error, np.float32), np.array(visible, np.int32))


def test_the_mean_and_the_spread_of_draws_by_statistics() -> None:
    """Patch 3 is removed in one draw alone, and patch 2 in none."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, 256, (3, 4, 12)).astype(np.uint8)
    visible = ([2, 3], [2], [2, 3, 1])
    errors = generator.random((3, 4)).tolist()
    mean = mean_of_draws([draw_of(*each) for each in zip(drawn, errors, visible, strict=True)])
    counted = {0: (0, 1, 2), 1: (0, 1), 2: (0, 1, 2), 3: (1,)}
    assert mean.visible_indices.tolist() == visible[0] and mean.spread is not None and mean.patch_spread is not None
    for patch, draws in counted.items():
        for number in range(12):
            values = [int(drawn[draw, patch, number]) for draw in draws]
            assert abs(mean.pixels[patch, number] - statistics.fmean(values)) <= 0.5
        assert mean.error[patch] == pytest.approx(statistics.fmean(errors[draw][patch] for draw in draws))
        if patch > 1:
            assert np.isnan(mean.spread[patch]).all() and np.isnan(mean.patch_spread[patch])
            continue
        variances = [statistics.variance(int(drawn[draw, patch, number]) for draw in draws) for number in range(12)]
        by_pixel = [statistics.fmean(variances[start : start + 3]) for start in (0, 3, 6, 9)]
        np.testing.assert_allclose(mean.spread[patch], np.sqrt(by_pixel), rtol=1e-6)
        assert mean.patch_spread[patch] == pytest.approx(np.sqrt(statistics.fmean(variances)))
    assert mean.loss == pytest.approx((mean.error[0] + mean.error[1]) / 2)


def test_64_draws_of_white_have_no_spread() -> None:
    white = np.full((4, 12), 255, np.uint8)
    mean = mean_of_draws([draw_of(white, [1, 2, 3, 4], [1])] * 64)
    assert mean.spread is not None and (mean.pixels == 255).all() and (mean.spread[[0, 2, 3]] == 0).all()


def test_listed_patches_are_removed() -> None:
    assert by_parameters(patches="3,0,3") == (None, sorted(ALL - {0, 3}))


@pytest.mark.parametrize("white", [{0}, {5, 6, 9}, ALL - {15}])
def test_white_patches_of_a_mask_picture_are_removed(white: set[int]) -> None:
    assert by_picture(white) == ALL - white


@pytest.mark.parametrize(
    ("parameters", "parameter"),
    [
        ({"patches": "16"}, "patches"),
        ({"patches": ",".join(map(str, ALL))}, "patches"),
        ({"mask_ratio": 0}, "mask_ratio"),
        ({"mask_ratio": 1, "strategy": "block"}, "mask_ratio"),
        ({"patches": "1", "seed": 1}, "seed"),
        ({"patches": "1", "strategy": "random", "seed": 1}, "seed"),
        ({"patches": "1", "mask_ratio": 0.5}, "mask_ratio"),
        ({"patches": "1", "draws": 8}, "draws"),
        ({"view": "spread"}, "view"),
        ({"view": "spread", "patches": "1"}, "view"),
    ],
)
def test_parameters_that_describe_no_mask(parameters: dict[str, Any], parameter: str) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        by_parameters(**parameters)
    assert refusal.value.details == {"parameter": parameter} and parameter in refusal.value.message


def test_default_values_describe_no_other_mask() -> None:
    """A form such as that of /docs sends every parameter that has a default."""
    defaults = {"mask_ratio": 0.75, "strategy": "random", "draws": 1}
    assert by_picture({5, 6}, **defaults) == ALL - {5, 6}
    assert by_parameters(patches="3", **defaults) == (None, sorted(ALL - {3}))


@pytest.mark.parametrize("white", [set(), ALL])
def test_a_mask_picture_of_no_patch_or_of_every_patch(white: set[int]) -> None:
    with pytest.raises(InvalidParameter, match=r"^mask: ") as refusal:
        by_picture(white)
    assert refusal.value.details == {"parameter": "mask"}


@pytest.mark.parametrize(
    ("parameters", "count", "parameter"),
    [
        ({}, 2, "mask"),
        ({"patches": "1"}, 1, "mask"),
        ({"seed": 1}, 1, "seed"),
        ({"strategy": "random"}, 2, "mask"),
        ({"strategy": "grid"}, 1, "strategy"),
        ({"mask_ratio": 0.8, "view": "panel"}, 1, "mask_ratio"),
        ({"draws": 8, "view": "spread"}, 1, "draws"),
    ],
)
def test_a_mask_picture_beside_another_mask_or_several_images(
    parameters: dict[str, Any], count: int, parameter: str
) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        by_picture({1}, count, **parameters)
    assert refusal.value.details == {"parameter": parameter}
