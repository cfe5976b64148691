"""Images to measure with: made here, since none are packaged, or a folder of the user's own."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from model.config import PRESETS
from model.engines.fixed_images import fixed_patches
from model.images.preprocess import FORMATS
from model.images.render import picture

MOST_FILES = 64
GRAIN = 5.0
"""Standard deviation in levels: a JPEG then takes about 1.7 bits a pixel, as photographs do at this quality."""
TYPES: Mapping[str, dict[str, Any]] = {
    "JPEG": {"quality": 85},
    "PNG": {"compress_level": 6},
    "WEBP": {"quality": 80},
}


@dataclass(frozen=True)
class Sample:
    """Files of one kind."""

    name: str
    files: tuple[bytes, ...]

    @property
    def mean_bytes(self) -> float:
        """Of a file."""
        return sum(map(len, self.files)) / len(self.files)


def made(kind: str, width: int, height: int, count: int) -> Sample:
    """The fixed pictures of the parity gate, scaled up and with grain, as `count` different files: the same each time.

    Args:
        kind: a key of `TYPES`.
        width: in pixels.
        height: in pixels.
        count: at most as many as there are fixed pictures.
    """
    grain = np.random.default_rng(0)
    files = []
    for patches in fixed_patches(PRESETS["mae_tiny"])[:count]:
        large = Image.fromarray(picture(patches)).resize((width, height), Image.Resampling.BICUBIC)
        # One grain for all channels, as in a picture's brightness: grain of colour is what cameras take away.
        levels = np.asarray(large) + grain.normal(0, GRAIN, (height, width, 1))
        out = io.BytesIO()
        Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).save(out, kind, **TYPES[kind])
        files.append(out.getvalue())
    return Sample(f"{kind} {width} x {height}", tuple(files))


def standard() -> list[Sample]:
    """A JPEG of the size that most data sets have, which the service is measured with, and larger and other files."""
    return [
        made("JPEG", 500, 334, 8),
        made("JPEG", 1280, 853, 2),
        made("JPEG", 2048, 1366, 2),
        made("PNG", 1280, 853, 2),
        made("WEBP", 1280, 853, 2),
    ]


def of_folder(folder: Path, max_bytes: int) -> Sample:
    """The first images in `folder` by name, at any depth, none of more than `max_bytes`.

    Raises:
        ValueError: there are none.
    """
    files: list[bytes] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if len(files) == MOST_FILES:
            break
        if path.stat().st_size <= max_bytes and _is_image(path):
            files.append(path.read_bytes())
    if not files:
        raise ValueError(f"{folder} holds no image that the service would take")
    return Sample(f"{len(files)} of {folder.name or folder}", tuple(files))


def _is_image(path: Path) -> bool:
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return False
