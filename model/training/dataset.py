"""Photographs as batches of training samples, each a pure function of the seed and its number.

So a run that is resumed, or spread over several processes, sees the same crops and masks in the same order.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.arrays import Bytes, Indices
from model.config import MAEConfig, Preprocessing
from model.images.preprocess import FORMATS, cut, loaded
from model.masking import Strategy, choose_visible

log = logging.getLogger(__name__)
PREFETCH = 3
ASPECTS = (3 / 4, 4 / 3)


class NoImages(ValueError):
    """There is nothing to train on."""


class Batch(NamedTuple):
    """One process's part of a step."""

    patches: Bytes
    """uint8 [B, N, P]."""
    visible_indices: Indices
    """The visible patches, int32 [B, K]."""
    labels: NDArray[np.int64]
    """Class of each image, [B]; zeros where there are none."""


@dataclass(frozen=True)
class Augmentation:
    """RandomResizedCrop (Szegedy et al. 2014) and a flip, and then a mask."""

    config: MAEConfig
    preprocessing: Preprocessing
    crop_scale: float
    mask_ratio: float
    strategy: Strategy

    def crop(self, image: Image.Image, draw: np.random.Generator) -> Bytes:
        """A random part of an upright RGB image, as patches uint8 [N, P]."""
        side = self.config.image_size
        box = random_box(image.size, self.crop_scale, draw)
        square = image.resize((side, side), Image.Resampling[self.preprocessing.filter.upper()], box=box)
        if draw.random() < 0.5:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return cut(np.asarray(square), self.config.patch_size)

    def mask(self, draw: np.random.Generator) -> Indices:
        """Positions of the patches that stay visible, int32 [K]; all of them for a ratio of 0."""
        seed = int(draw.integers(2**63))
        if self.mask_ratio == 0:
            return np.arange(self.config.num_patches, dtype=np.int32)
        return choose_visible(self.strategy, self.config.grid, self.mask_ratio, seed)


def random_box(size: tuple[int, int], least: float, draw: np.random.Generator) -> tuple[float, float, float, float]:
    """A box (left, top, right, bottom) that keeps a share between `least` and 1 of an image, of an aspect near 1.

    As torchvision's RandomResizedCrop: ten tries, then the largest centre box of an allowed aspect.
    """
    width, height = size
    for _ in range(10):
        area = width * height * draw.uniform(least, 1)
        aspect = math.exp(draw.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1])))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = draw.uniform(0, width - w), draw.uniform(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, height * ASPECTS[1]), min(height, width / ASPECTS[0])
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


class ImageDataset:
    """Image files, some of which may turn out to be broken."""

    def __init__(self, paths: Sequence[str], labels: Sequence[int] | None = None) -> None:
        """Files, in an order that should not change from run to run, and their classes."""
        if not paths:
            raise NoImages("there are no images to train on")
        self.paths = paths
        self.labels = labels if labels is not None else [0] * len(paths)
        self.broken: dict[str, str] = {}
        """Why a file cannot be used."""

    def load(self, index: int, least_side: int) -> tuple[Image.Image, int]:
        """The image `index`, or the next one that can be read, and its class.

        Raises:
            NoImages: none can be read.
        """
        for place in range(index, index + len(self.paths)):
            path = self.paths[place % len(self.paths)]
            if path in self.broken:
                continue
            try:
                with Image.open(path, formats=FORMATS) as image:
                    return loaded(image, least_side), self.labels[place % len(self.paths)]
            except MemoryError:
                raise
            except Exception as error:  # Pillow's decoders raise whatever a damaged file leads them to
                self.broken[path] = str(error)
                log.warning("skipped: %s: %s", path, error)
        raise NoImages(f"none of the {len(self.paths)} images can be read")


class Loader:
    """Batches from a given step on, decoded ahead by threads."""

    def __init__(
        self,
        photographs: ImageDataset,
        augmentation: Augmentation,
        seed: int,
        batch_size: int,
        part: tuple[int, int],
        workers: int,
    ) -> None:
        """Of each step's `batch_size` samples, this process takes the `part` (rank, number of processes)."""
        self._photographs = photographs
        self._augmentation = augmentation
        self._seed = seed
        self._batch_size = batch_size
        self._rank, self._size = part
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def batches(self, step: int) -> Iterator[Batch]:
        """Without end, beginning with that of `step`."""
        ahead: deque[list[Future[tuple[Bytes, Indices, int]]]] = deque()
        steps = count(step)
        while True:
            while len(ahead) <= PREFETCH:
                ahead.append([self._pool.submit(self._sample, *place) for place in self._places(next(steps))])
            patches, visible_indices, labels = zip(*(future.result() for future in ahead.popleft()), strict=True)
            yield Batch(np.stack(patches), np.stack(visible_indices), np.array(labels, dtype=np.int64))

    def close(self) -> None:
        """Lets the threads go."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _places(self, step: int) -> list[tuple[int, int]]:
        """Number and image of each of this process's samples; epochs follow each other without a gap."""
        share = self._batch_size // self._size
        start = step * self._batch_size + self._rank * share
        return [(number, self._image_of(number)) for number in range(start, start + share)]

    def _image_of(self, number: int) -> int:
        epoch, place = divmod(number, len(self._photographs.paths))
        if self._order[0] != epoch:
            shuffle = np.random.default_rng((self._seed, 0, epoch))
            self._order = epoch, shuffle.permutation(len(self._photographs.paths))
        return int(self._order[1][place])

    def _sample(self, number: int, index: int) -> tuple[Bytes, Indices, int]:
        draw = np.random.default_rng((self._seed, 1, number))
        image, label = self._photographs.load(index, self._augmentation.config.image_size)
        return self._augmentation.crop(image, draw), self._augmentation.mask(draw), label
