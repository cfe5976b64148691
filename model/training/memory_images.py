"""Images decoded once into memory, on the device that trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.images.formats.base import StoredImage
from model.images.shrink import load_small, small_size
from model.training.config import TrainingConfig
from model.training.dataset import Augmentation, ImageDataset, NoImages
from model.training.distributed import DistributedContext
from model.training.resample import FILTERS
from model.training.run import RunError

_Decoded = tuple[Image.Image, tuple[float, float]]


class MemoryImages(NamedTuple):
    """n images; those of broken files are the next ones that can be read."""

    pixels: Tensor
    """The pixels of all images, one image after the other and row by row, uint8 [pixels, 3]."""
    first_pixels: NDArray[np.int64]
    """Index of each image's first pixel, [n]."""
    sizes: NDArray[np.int64]
    """Width and height of each image in memory, [n, 2]."""
    extents: NDArray[np.float64]
    """Width and height of the picture that is cropped without `--in-memory`, [n, 2]: crops are drawn in it, so that
    they and the masks are the same."""
    labels: NDArray[np.int64]
    """Class of each image, [n]."""


class MemoryPlan(NamedTuple):
    """How the images of a data set are to be kept; it is made before any image is decoded."""

    side: int
    """Short side in pixels that larger images are scaled down to."""
    pixels: int
    """Pixels of all images."""
    threads: int
    """Threads that decode."""
    device: torch.device
    """Where the pixels are to be."""

    @classmethod
    def of(
        cls, dataset: ImageDataset, augmentation: Augmentation, recipe: TrainingConfig, context: DistributedContext
    ) -> Self:
        """Plans for the images of `dataset`, whose headers are read.

        Raises:
            RunError: the images need more memory than the recipe allows, or the model's filter is not supported.
        """
        if augmentation.preprocessing.filter not in FILTERS:
            raise RunError(f"--in-memory does not know the filter {augmentation.preprocessing.filter} of these weights")
        side = recipe.memory_side or augmentation.config.image_size
        threads = recipe.workers or context.cpus
        numbers = range(len(dataset.paths))
        with ThreadPoolExecutor(threads, thread_name_prefix="measure") as pool:
            areas = pool.map(lambda index: dataset.try_load(index, partial(_small_area, side=side)) or 0, numbers)
            pixels = sum(areas)
        if (megabytes := 3 * pixels / 1e6) > recipe.memory_mb:
            raise RunError(
                f"{len(numbers)} images with a short side of {side} need {megabytes:.3g} MB, and --memory-mb allows "
                f"{recipe.memory_mb:g}: allow more, or take a smaller --memory-side or fewer images"
            )
        return cls(side, pixels, threads, context.device)

    def load(self, dataset: ImageDataset) -> MemoryImages:
        """Decodes all images.

        Raises:
            NoImages: none can be read.
        """
        count = len(dataset.paths)
        pixels = np.empty((self.pixels, 3), dtype=np.uint8)
        first_pixels, sizes, extents = np.zeros(count, np.int64), np.zeros((count, 2), np.int64), np.zeros((count, 2))
        end = 0
        for index, (image, extent) in self._decode(dataset):
            first_pixels[index], sizes[index], extents[index] = end, image.size, extent
            end += image.width * image.height
            pixels[first_pixels[index] : end] = np.asarray(image).reshape(-1, 3)
        readable = np.flatnonzero(sizes[:, 0])
        if not len(readable):
            raise NoImages(f"none of the {count} images can be read")
        source = readable[np.searchsorted(readable, np.arange(count)) % len(readable)]
        labels = np.array(dataset.labels, dtype=np.int64)
        device_pixels = torch.from_numpy(pixels[:end]).to(self.device)
        return MemoryImages(device_pixels, first_pixels[source], sizes[source], extents[source], labels[source])

    def _decode(self, dataset: ImageDataset) -> Iterator[tuple[int, _Decoded]]:
        """Indices of the images that can be read, in their order, and what `load_small` makes of them."""
        running: deque[tuple[int, Future[_Decoded | None]]] = deque()
        indices = iter(range(len(dataset.paths)))
        decode = partial(load_small, side=self.side)
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:
            while True:
                for index in islice(indices, 4 * self.threads - len(running)):
                    running.append((index, pool.submit(dataset.try_load, index, decode)))
                if not running:
                    return
                oldest, future = running.popleft()
                if (decoded := future.result()) is not None:
                    yield oldest, decoded


def _small_area(image: StoredImage, side: int) -> int:
    """Pixels that an opened image will have in memory; only its header is read."""
    width, height = small_size(image.size, side)
    return width * height
