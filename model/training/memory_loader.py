"""Batches of training samples from images in memory: the host draws crops and masks, the device makes the pixels."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.masking import all_indices, choose_visible, visible_count
from model.training.dataset import PREFETCH_STEPS, Augmentation, SampleOrder, draw_crop
from model.training.memory_images import MemoryImages
from model.training.resample import Crops, crop_squares, to_device
from model.training.seeding import make_bit_generators

SIGN_BIT = np.uint64(2**63)


class DeviceBatch(NamedTuple):
    """A `Batch` whose arrays are tensors on the device."""

    patches: Tensor
    """All patches, uint8 [B, N, P]."""
    visible_indices: Tensor
    """Indices of the visible patches, int32 [B, K]."""
    labels: Tensor
    """Class of each image, [B]."""


class Draws(NamedTuple):
    """The random choices of a step, on the host."""

    crops: Crops
    masks: NDArray[np.signedinteger[Any]]
    """Keys of the patches, int64 [B, N], of which the K smallest stay visible; or visible indices, int32 [B, K]."""
    labels: NDArray[np.int64]


class MemoryLoader:
    """Batches with the images, crops, flips and masks of a `DataLoader`, by one thread a few steps ahead.

    The pixels differ from that loader's by rounding, if no image is scaled down in memory.
    """

    def __init__(
        self,
        images: MemoryImages,
        augmentation: Augmentation,
        seed: int,
        batch_size: int,
        *,
        rank: int,
        world_size: int,
    ) -> None:
        """Starts the thread.

        Args:
            images: the images.
            augmentation: says what is made of each image.
            seed: the seed of all draws.
            batch_size: samples per step, over all processes.
            rank: number of this process, which gets its share of each step.
            world_size: number of processes.
        """
        self._images = images
        self._augmentation = augmentation
        self._order = SampleOrder(len(images.labels), seed, batch_size, rank, world_size)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="draw")

    def batches(self, step: int) -> Iterator[DeviceBatch]:
        """Batches without end, beginning with that of `step`."""
        ahead: deque[Future[Draws]] = deque()
        steps = count(step)
        while True:
            while len(ahead) <= PREFETCH_STEPS:
                ahead.append(self._pool.submit(self.draw, next(steps)))
            yield self.make_batch(ahead.popleft().result())

    def close(self) -> None:
        """Stops the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def draw(self, step: int) -> Draws:
        """Draws each sample's crop, flip and mask, in the order in which `Augmentation` draws them."""
        images, augmentation = self._images, self._augmentation
        numbers, indices = zip(*self._order.samples_of(step), strict=True)
        chosen = np.array(indices)
        extents = images.extents[chosen]  # [B, 2]
        boxes, flips, mask_seeds = [], [], []
        for rng, (width, height) in zip(self._order.rngs_of(numbers), extents.tolist(), strict=True):
            boxes.append(draw_crop((width, height), augmentation.crop_scale, rng))
            flips.append(rng.random() < 0.5)
            mask_seeds.append(rng.integers(2**63))
        sizes = images.sizes[chosen]
        scaled = np.array(boxes) * np.tile(sizes / extents, 2)  # [B, 4]
        crops = Crops(images.first_pixels[chosen], sizes, scaled, np.array(flips))
        return Draws(crops, self._draw_masks(np.array(mask_seeds, dtype=np.uint64)), images.labels[chosen])

    def _draw_masks(self, seeds: NDArray[np.uint64]) -> NDArray[np.signedinteger[Any]]:
        """Keys of the patches for `_choose_visible`, int64 [B, N]; or visible indices, if masks are not random."""
        a = self._augmentation
        if a.mask_ratio == 0:
            return np.tile(all_indices(a.config.num_patches), (len(seeds), 1))
        if a.strategy != "random":
            return np.stack([choose_visible(a.strategy, a.config.grid, a.mask_ratio, int(seed)) for seed in seeds])
        words = seeds.astype("<u8").view("<u4").reshape(-1, 2).astype(np.uint32)
        num_patches = a.config.num_patches
        keys = np.stack([bits.random_raw(num_patches) for bits in make_bit_generators(words)])
        return (keys ^ SIGN_BIT).view(np.int64)  # in the same order as signed numbers, which torch can sort

    def make_batch(self, draws: Draws) -> DeviceBatch:
        """Makes the samples on the device, which the host does not wait for."""
        pixels, augmentation = self._images.pixels, self._augmentation
        side, p = augmentation.config.image_size, augmentation.config.patch_size
        squares = crop_squares(pixels, draws.crops, side, augmentation.preprocessing.filter)  # [B, S, S, 3]
        rows = side // p
        patches = squares.view(-1, rows, p, rows, p, 3).transpose(2, 3).reshape(-1, rows * rows, p * p * 3)  # [B, N, P]
        masks = to_device(torch.from_numpy(draws.masks), pixels.device)
        visible_indices = self._choose_visible(masks) if masks.dtype == torch.int64 else masks
        return DeviceBatch(patches, visible_indices, to_device(torch.from_numpy(draws.labels), pixels.device))

    def _choose_visible(self, keys: Tensor) -> Tensor:
        """The K patches with the smallest keys, ascending, int32 [B, K], as `choose_visible` chooses them."""
        kept = visible_count(keys.shape[1], self._augmentation.mask_ratio)
        return keys.argsort(dim=1, stable=True)[:, :kept].sort(dim=1).values.int()
