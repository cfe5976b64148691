"""Images to measure with: generated ones, since no photographs are packaged, or those of a folder."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.config import PRESETS
from model.engines.fixed_images import fixed_patches
from model.images.errors import ImageError
from model.images.open_image import open_image
from model.images.preprocess import unpatchify

MAX_FILES = 64
NOISE_LEVELS = 5.0
"""Standard deviation of the noise in levels of 255: a JPEG of quality 85 then takes about 1.7 bits per pixel, as
photographs do."""
SAVE_OPTIONS: Mapping[str, dict[str, Any]] = {
    "JPEG": {"quality": 85},
    "PNG": {"compress_level": 6},
    "WEBP": {"quality": 80},
}
"""Pillow's options for each format that images are generated in."""


@dataclass(frozen=True)
class Sample:
    """Image files of one kind."""

    name: str
    files: tuple[bytes, ...]

    @property
    def mean_bytes(self) -> float:
        """The mean size of a file."""
        return sum(map(len, self.files)) / len(self.files)


def standard_samples() -> list[Sample]:
    """Five kinds of generated files.

    The first, JPEGs of the size that most data sets have, is sent to the servers; the others are larger or of other
    formats.
    """
    return [
        generate_sample("JPEG", 500, 334, 8),
        generate_sample("JPEG", 1280, 853, 2),
        generate_sample("JPEG", 2048, 1366, 2),
        generate_sample("PNG", 1280, 853, 2),
        generate_sample("WEBP", 1280, 853, 2),
    ]


def generate_sample(image_format: str, width: int, height: int, count: int) -> Sample:
    """Makes `count` different files, the same ones every time: the parity check's pictures, enlarged, with noise.

    Args:
        image_format: a key of `SAVE_OPTIONS`.
        width: in pixels.
        height: in pixels.
        count: at most the number of fixed pictures.
    """
    noise = np.random.default_rng(0)
    files = []
    for patches in fixed_patches(PRESETS["mae_tiny"])[:count]:
        enlarged = Image.fromarray(unpatchify(patches)).resize((width, height), Image.Resampling.BICUBIC)
        # All channels get the same noise: cameras remove colour noise, so photographs have little of it.
        levels = np.asarray(enlarged) + noise.normal(0, NOISE_LEVELS, (height, width, 1))
        out = io.BytesIO()
        Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).save(out, image_format, **SAVE_OPTIONS[image_format])
        files.append(out.getvalue())
    return Sample(f"{image_format} {width} x {height}", tuple(files))


def read_sample(folder: Path, max_bytes: int) -> Sample:
    """The first images in `folder` by name, at any depth; files of more than `max_bytes` are left out.

    Raises:
        ValueError: the folder holds no such image.
    """
    files: list[bytes] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if len(files) == MAX_FILES:
            break
        if path.stat().st_size <= max_bytes and _is_image(path):
            files.append(path.read_bytes())
    if not files:
        raise ValueError(f"{folder} holds no image that the service would take")
    return Sample(f"{len(files)} of {folder.name or folder}", tuple(files))


def _is_image(path: Path) -> bool:
    try:
        open_image(str(path))
    except ImageError:
        return False
    return True
