"""Measures what the samples of pretraining cost: from files, from memory, and on the host beside a GPU.

    .venv/bin/python -m tests.benchmarks.loading FOLDER --images 1000

Each figure is CPU time of all threads, in microseconds for one crop of 224 pixels with its mask.

- files: `mae pretrain`: decode, crop, resize and mask.
- memory on a CPU: `mae pretrain --in-memory`; the CPU is the device and makes the pixels.
- host: what the host does beside a GPU, with a stand-in for the device. It draws the crops and masks of batches of 64,
  and it starts the operations of a batch; these get one crop of 14 x 14 pixels, with 196 patches of one pixel, so that
  almost nothing is computed. Starting an operation on CUDA takes longer than on a CPU: with their number, which is
  printed, each microsecond more per operation is as many microseconds per batch.

It also prints how far the pixels from memory lie from those from files.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import PRESETS, Preprocessing
from model.images.folders import find_images
from model.training.config import Recipe
from model.training.dataset import Augmentation, DataLoader, ImageDataset
from model.training.distributed import DistributedContext
from model.training.memory_images import MemoryImages, MemoryPlan
from model.training.memory_loader import Draws, MemoryLoader

BATCH = 64
TINY = 14
"""Side of the squares of the stand-in."""


class OperationCounter(TorchDispatchMode):
    """Counts the operations that are started, views left out."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def load(paths: list[str], augmentation: Augmentation, side: int) -> MemoryImages:
    """Decodes the images into memory, with that short side."""
    context = DistributedContext(0, 1, 0, 1, torch.device("cpu"))
    dataset = ImageDataset(paths)
    return MemoryPlan.of(dataset, augmentation, Recipe(in_memory=True, memory_side=side), context).load(dataset)


def microseconds_per_crop(batches: Iterator[Any], crops: int) -> float:
    """CPU time of all threads for one crop, after a few batches that are not counted."""
    for _ in range(5):
        next(batches)
    start = time.process_time()
    for _ in range(crops // BATCH):
        next(batches)
    return (time.process_time() - start) / (crops // BATCH * BATCH) * 1e6


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="photographs at any depth, or a pack")
    parser.add_argument("--images", type=int, default=1000, help="number of photographs")
    parser.add_argument("--crops", type=int, default=1280, help="crops per measurement")
    parser.add_argument("--repeat", type=int, default=3, help="measurements; all are printed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    paths = find_images([options.folder]).images
    paths = np.random.default_rng(0).permutation(np.array(paths, dtype=object))[: options.images].tolist()
    config = PRESETS["mae_tiny"]
    augmentation = Augmentation(config, Preprocessing(), 0.2, 0.75, "random")
    tiny_config = config.model_copy(update={"image_size": TINY, "patch_size": 1})
    tiny_augmentation = Augmentation(tiny_config, Preprocessing(), 0.2, 0.75, "random")
    images, tiny = load(paths, augmentation, config.image_size), load(paths, tiny_augmentation, TINY)
    print(f"{len(paths)} images, {images.pixels.numel() / 1e6:.0f} MB in memory; torch {torch.__version__}")
    one = {"rank": 0, "world_size": 1}

    files = DataLoader(ImageDataset(paths), augmentation, 0, BATCH, **one, threads=1)
    memory = MemoryLoader(images, augmentation, 0, BATCH, **one)
    batch, other = next(files.batches(0)), next(memory.batches(0))
    difference = np.abs(batch.patches.astype(int) - other.patches.numpy())
    same_masks = np.array_equal(batch.visible_indices, other.visible_indices.numpy())
    print(
        f"pixels: {difference.max()} levels apart at most, {(difference > 0).mean():.1e} of the values differ; "
        f"masks are {'the same' if same_masks else 'NOT the same'}"
    )
    for _ in range(options.repeat):
        print(f"files            {microseconds_per_crop(files.batches(1), options.crops):7.1f} us")
        print(f"memory on a CPU  {microseconds_per_crop(memory.batches(1), options.crops):7.1f} us")
    files.close()
    memory.close()

    stand_in = MemoryLoader(tiny, tiny_augmentation, 0, BATCH, **one)
    draws = stand_in.draw(0)
    one_crop = Draws(draws.crops.select(slice(1)), draws.masks[:1], draws.labels[:1])
    with OperationCounter() as counter:
        stand_in.make_batch(one_crop)
    for _ in range(options.repeat):
        drawing = microseconds_per_crop(map(stand_in.draw, count()), 4 * options.crops)
        starting = microseconds_per_crop((stand_in.make_batch(one_crop) for _ in count()), 4 * options.crops)
        print(
            f"host             {drawing + starting:7.1f} us: {drawing:.1f} to draw, {starting:.1f} to start operations"
        )
    print(f"operations for a batch of {BATCH}: {counter.count}")
    stand_in.close()


if __name__ == "__main__":
    main()
