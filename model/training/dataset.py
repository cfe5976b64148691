"""Images as batches of training samples; each sample is a pure function of the seed and of its number.

So a run that is resumed, or spread over several processes, sees the same crops and masks in the same order.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.arrays import Bytes, Indices
from model.config import MAEConfig, Preprocessing
from model.images.errors import ImageError
from model.images.formats.base import StoredImage
from model.images.open_image import MAX_PIXELS
from model.images.packs import open_image_file
from model.images.preprocess import Box, DecodedPixels, filter_of, load_upright, patchify
from model.masking import Strategy, all_indices, choose_visible
from model.training.seeding import make_bit_generators

T = TypeVar("T")
PREFETCH_STEPS = 3
ASPECT_RATIOS = (3 / 4, 4 / 3)

log = logging.getLogger(__name__)


class NoImages(ValueError):
    """There is no image to train on."""


class Batch(NamedTuple):
    """One process's part of a step: B images."""

    patches: Bytes
    """All patches, uint8 [B, N, P]."""
    visible_indices: Indices
    """Indices of the visible patches, int32 [B, K]."""
    labels: NDArray[np.int64]
    """Class of each image, [B]; zeros where there are no classes."""


@dataclass(frozen=True)
class Augmentation:
    """RandomResizedCrop (Szegedy et al. 2014), a random flip, and a random mask.

    Attributes:
        config: image size and patch size.
        preprocessing: gives the filter of the resize.
        crop_scale: least share of an image that a crop keeps.
        mask_ratio: share of the patches that is removed; 0 for none.
        strategy: how the removed patches are chosen.
    """

    config: MAEConfig
    preprocessing: Preprocessing
    crop_scale: float
    mask_ratio: float
    strategy: Strategy

    def crop(self, pixels: DecodedPixels, rng: np.random.Generator) -> Bytes:
        """A random crop of an upright image, flipped in half of the cases, as patches uint8 [N, P]."""
        side = self.config.image_size
        start_x, start_y, end_x, end_y = pixels.box
        left, top, right, bottom = draw_crop((end_x - start_x, end_y - start_y), self.crop_scale, rng)
        box = (start_x + left, start_y + top, start_x + right, start_y + bottom)
        square = pixels.resize((side, side), filter_of(self.preprocessing), box)
        if rng.random() < 0.5:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return patchify(np.asarray(square), self.config.patch_size)

    def mask(self, rng: np.random.Generator) -> Indices:
        """Indices of the patches that stay visible, int32 [K]; all of them for a ratio of 0."""
        seed = int(rng.integers(2**63))
        if self.mask_ratio == 0:
            return all_indices(self.config.num_patches)
        return choose_visible(self.strategy, self.config.grid, self.mask_ratio, seed)


def draw_crop(size: tuple[float, float], min_share: float, rng: np.random.Generator) -> Box:
    """Draws the box of a crop that keeps a share between `min_share` and 1 of an image, of an aspect ratio near 1.

    This is torchvision's RandomResizedCrop in real numbers: ten tries, then the largest centre box of an allowed aspect
    ratio.

    Args:
        size: width and height of the image.
        min_share: least share of its area.
        rng: the source of the draws.
    """
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(min_share, 1)
        aspect = math.exp(rng.uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, height * ASPECT_RATIOS[1]), min(height, width / ASPECT_RATIOS[0])
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2


class ImageDataset:
    """Image files, some of which may turn out to be broken.

    Attributes:
        paths: the files, in an order that should not change from run to run.
        labels: class of each file; zeros where there are no classes.
        broken: files that cannot be used, with the reason.
    """

    def __init__(self, paths: Sequence[str], labels: Sequence[int] | None = None, max_pixels: int = MAX_PIXELS) -> None:
        """Takes the files and their classes; files with more than `max_pixels` to decode count as broken.

        Raises:
            NoImages: there are none.
        """
        if not paths:
            raise NoImages("there are no images to train on")
        self.paths = paths
        self.labels = labels if labels is not None else [0] * len(paths)
        self.broken: dict[str, str] = {}
        self._max_pixels = max_pixels

    def load(self, index: int, decode: Callable[[StoredImage], T]) -> tuple[T, int]:
        """Decodes image `index`, or the next one that can be read.

        Args:
            index: the image.
            decode: makes the result from an opened image.

        Returns:
            The result, and the class of the image.

        Raises:
            NoImages: no image can be read.
        """
        count = len(self.paths)
        for number in ((index + offset) % count for offset in range(count)):
            if (result := self.try_load(number, decode)) is not None:
                return result, self.labels[number]
        raise NoImages(f"none of the {count} images can be read")

    def try_load(self, index: int, decode: Callable[[StoredImage], T]) -> T | None:
        """Decodes image `index`; None if it is broken, which is logged the first time.

        Args:
            index: the image.
            decode: makes the result, which is not None, from an opened image.
        """
        path = self.paths[index]
        if path in self.broken:
            return None
        try:
            return decode(open_image_file(path, self._max_pixels))
        except ImageError as error:
            self.broken[path] = str(error)
            log.warning("skipped: %s: %s", path, error)
            return None


class SampleOrder:
    """Which image each sample is made of, and the random numbers of its crop and mask."""

    def __init__(self, images: int, seed: int, batch_size: int, rank: int, world_size: int) -> None:
        """Takes the number of images and the arguments of `DataLoader`."""
        self._images = images
        self._seed = seed
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._permutation: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def samples_of(self, step: int) -> list[tuple[int, int]]:
        """Number and image of each of this process's samples in a step; epochs follow each other without a gap."""
        share = self._batch_size // self._world_size
        first = step * self._batch_size + self._rank * share
        return [(number, self._image_of(number)) for number in range(first, first + share)]

    def rng_of(self, number: int) -> np.random.Generator:
        """The source of the draws of sample `number`."""
        return np.random.default_rng((self._seed, 1, number))

    def rngs_of(self, numbers: Sequence[int]) -> list[np.random.Generator]:
        """The same for several samples, which takes a quarter of the time."""
        if max(numbers[-1], self._seed) >= 2**32:
            return [self.rng_of(number) for number in numbers]
        words = np.array([(self._seed, 1, number) for number in numbers], dtype=np.uint32)
        return [np.random.Generator(bits) for bits in make_bit_generators(words)]

    def _image_of(self, number: int) -> int:
        """Index of the image of sample `number`: each epoch has its own order."""
        epoch, position = divmod(number, self._images)
        if self._permutation[0] != epoch:
            rng = np.random.default_rng((self._seed, 0, epoch))
            self._permutation = epoch, rng.permutation(self._images)
        return int(self._permutation[1][position])


class DataLoader:
    """Batches of training samples from files; threads decode a few steps ahead."""

    def __init__(
        self,
        dataset: ImageDataset,
        augmentation: Augmentation,
        seed: int,
        batch_size: int,
        *,
        rank: int,
        world_size: int,
        threads: int,
    ) -> None:
        """Starts the threads.

        Args:
            dataset: the images.
            augmentation: makes a sample of each image.
            seed: the seed of all draws.
            batch_size: samples per step, over all processes.
            rank: number of this process, which gets its share of each step.
            world_size: number of processes.
            threads: threads that decode.
        """
        self._dataset = dataset
        self._augmentation = augmentation
        self._order = SampleOrder(len(dataset.paths), seed, batch_size, rank, world_size)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def batches(self, step: int) -> Iterator[Batch]:
        """Batches without end, beginning with that of `step`."""
        ahead: deque[list[Future[tuple[Bytes, Indices, int]]]] = deque()
        steps = count(step)
        while True:
            while len(ahead) <= PREFETCH_STEPS:
                samples = self._order.samples_of(next(steps))
                ahead.append([self._pool.submit(self._sample, number, index) for number, index in samples])
            patches, visible_indices, labels = zip(*(future.result() for future in ahead.popleft()), strict=True)
            yield Batch(np.stack(patches), np.stack(visible_indices), np.array(labels, dtype=np.int64))

    def close(self) -> None:
        """Stops the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _sample(self, number: int, index: int) -> tuple[Bytes, Indices, int]:
        """Patches uint8 [N, P], visible indices int32 [K] and class of sample `number`, made of image `index`."""
        rng = self._order.rng_of(number)
        side = self._augmentation.config.image_size
        pixels, label = self._dataset.load(index, lambda image: load_upright(image, side))
        return self._augmentation.crop(pixels, rng), self._augmentation.mask(rng), label
