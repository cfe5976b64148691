"""Crops on the device beside Pillow's."""

from collections.abc import Mapping
from typing import get_args

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from model.config import Filter
from model.training import resample
from model.training.dataset import draw_crop
from model.training.resample import Crops, crop_squares

PILLOW = int(PIL.__version__.partition(".")[0])
SIDE = 96


def pillow_crops(images: list[Image.Image], crops: Crops, filter_name: str) -> np.ndarray:
    """The same by Pillow, uint8 [B, S, S, 3]."""
    squares = []
    for image, box, flip in zip(images, crops.boxes.tolist(), crops.flips, strict=True):
        square = image.resize((SIDE, SIDE), Image.Resampling[filter_name.upper()], box=tuple(box))
        squares.append(np.asarray(square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else square))
    return np.stack(squares)


def random_crops(images: list[Image.Image]) -> tuple[torch.Tensor, Crops]:
    """The pixels of the images, and a crop of each."""
    rng = np.random.default_rng(0)
    pixels = np.concatenate([np.asarray(image).reshape(-1, 3) for image in images])
    sizes = np.array([image.size for image in images])
    first_pixels = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))[:-1]])
    boxes = np.array([draw_crop(image.size, 0.2, rng) for image in images])
    return torch.from_numpy(pixels), Crops(first_pixels, sizes, boxes, rng.random(len(images)) < 0.5)


@pytest.fixture(scope="module")
def images(photographs: Mapping[str, Image.Image]) -> list[Image.Image]:
    """Photographs of many sizes: enlarged and scaled down, wide and tall; of tall ones only with a Pillow of the order
    of axes that is imitated."""
    sizes = [(96, 96), (130, 100), (400, 300), (60, 40), (250, 97), (200, 96), (700, 100)]
    sizes += [(96, 200), (100, 140), (300, 420), (40, 300), (90, 97), (350, 365)] if PILLOW >= 13 else []
    return [image.convert("RGB").resize(size) for image in photographs.values() for size in sizes]


@pytest.mark.parametrize("filter_name", [name for name in get_args(Filter) if name != "nearest"])
def test_pixels_are_pillows_but_for_rounding(images: list[Image.Image], filter_name: Filter) -> None:
    pixels, crops = random_crops(images)
    difference = np.abs(
        crop_squares(pixels, crops, SIDE, filter_name).numpy().astype(int) - pillow_crops(images, crops, filter_name)
    )
    assert difference.max() <= 1
    assert (difference > 0).mean() < 2e-3


def test_a_mixed_chunk_has_the_same_pixels(images: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU crops of all shapes are made together."""
    pixels, crops = random_crops(images)
    apart = crop_squares(pixels, crops, SIDE, "bicubic")
    monkeypatch.setattr(resample, "CPU_CHUNK", len(images))
    together = crop_squares(pixels, crops, SIDE, "bicubic")
    assert (apart != together).float().mean() < 1e-4


def test_tiny_images() -> None:
    rng = np.random.default_rng(1)
    images = [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in ((1, 1), (2, 1), (1, 2), (3, 5), (2, 9))
    ]
    pixels, crops = random_crops(images)
    difference = np.abs(
        crop_squares(pixels, crops, SIDE, "bicubic").numpy().astype(int) - pillow_crops(images, crops, "bicubic")
    )
    assert difference.max() <= 1
