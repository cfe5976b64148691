"""Masks of requests: drawn by a seed, listed, or painted; against sets and NumPy."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model.config import MAEConfig, Preprocessing
from service.errors import InvalidParameter
from service.inference.image_decoder import DecodedImage, ImageDecoder
from service.inference.masks import choose_patches_by_picture, choose_patches_to_remove
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


def by_picture(white: set[int], count: int = 1, **parameters: Any) -> set[int]:
    choose = choose_patches_by_picture(CONFIG, DECODER, ReconstructParameters(**parameters), picture(white), count)
    return set(choose(image()).tolist())


def by_parameters(**parameters: Any) -> tuple[int | None, list[int]]:
    seed, choose = choose_patches_to_remove(CONFIG, ReconstructParameters(**parameters))
    return seed, choose(image()).tolist()


def test_a_seed_draws_the_same_mask_again() -> None:
    seed, visible = by_parameters(mask_ratio=0.5)
    assert seed is not None and len(visible) == 8
    assert by_parameters(mask_ratio=0.5, seed=seed) == (seed, visible)
    assert by_parameters(mask_ratio=0.5, seed=seed, strategy="grid")[1] != visible


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
        ({"patches": "1", "mask_ratio": 0.75}, "mask_ratio"),
    ],
)
def test_parameters_that_describe_no_mask(parameters: dict[str, Any], parameter: str) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        by_parameters(**parameters)
    assert refusal.value.details == {"parameter": parameter} and parameter in refusal.value.message


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
        ({"strategy": "random"}, 2, "strategy"),
        ({"mask_ratio": 0.75, "view": "panel"}, 1, "mask_ratio"),
    ],
)
def test_a_mask_picture_beside_another_mask_or_several_images(
    parameters: dict[str, Any], count: int, parameter: str
) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        by_picture({1}, count, **parameters)
    assert refusal.value.details == {"parameter": parameter}
