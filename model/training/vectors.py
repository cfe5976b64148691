"""Pooled vectors of image files, prepared and encoded as they will be served."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from model.arrays import Bytes, Floats
from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.heads import POOL_INDEX
from model.checkpoints.native import Pooled
from model.images.formats.base import StoredImage
from model.images.preprocess import patches_of
from model.masking import all_indices
from model.nn.serving import EncoderGraph
from model.training.dataset import ImageDataset

BATCH = 32


class LabelledVectors(NamedTuple):
    """Vectors of n images that could be read."""

    numbers: NDArray[np.int64]
    """Indices of the images in their dataset, [n]."""
    vectors: Floats
    """Float32 [n, D]."""
    labels: NDArray[np.int64]
    """Class of each image, [n]."""

    def select(self, indices: NDArray[np.int64]) -> Self:
        """Some of the vectors, in the order of `indices`."""
        return type(self)(self.numbers[indices], self.vectors[indices], self.labels[indices])

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Joins several, at least one."""
        numbers, vectors, labels = zip(*parts, strict=True)
        return cls(np.concatenate(numbers), np.concatenate(vectors), np.concatenate(labels))


class PatchBatch(NamedTuple):
    """B images that could be read."""

    numbers: NDArray[np.int64]
    """Indices of the images in their dataset, [B]."""
    patches: Bytes
    """Uint8 [B, N, P]."""
    labels: NDArray[np.int64]
    """Class of each image, [B]."""


class VectorEncoder:
    """Encodes whole images in float32, without augmentation."""

    def __init__(self, checkpoint: Checkpoint, pool: Pooled, device: torch.device, threads: int) -> None:
        """Loads the encoder.

        Args:
            checkpoint: the model.
            pool: the vector to take.
            device: where it computes.
            threads: threads that decode images.
        """
        self._graph = EncoderGraph(checkpoint.build().to(device), checkpoint.preprocessing).to(device)
        self._visible_indices = torch.from_numpy(all_indices(checkpoint.config.num_patches)).to(device)
        self._decode = partial(patches_of, config=checkpoint.config, preprocessing=checkpoint.preprocessing)
        self._pool_index = POOL_INDEX[pool]
        self._device = device
        self._threads = threads

    def batches(self, dataset: ImageDataset, indices: Sequence[int]) -> Iterator[LabelledVectors]:
        """The vectors of some images of a dataset, a batch at a time; broken images are left out.

        Raises:
            NoImages: none can be read.
        """
        for numbers, patches, labels in read_batches(dataset, indices, self._decode, self._threads):
            yield LabelledVectors(numbers, self._encode(patches), labels)

    def _encode(self, patches: Bytes) -> Floats:
        """Patches uint8 [B, N, P] -> float32 [B, D]."""
        with torch.inference_mode():
            batch = torch.from_numpy(patches).to(self._device)
            pooled, _ = self._graph(batch, self._visible_indices.expand(len(patches), -1))  # [B, 2, D]
        vectors: Floats = pooled[:, self._pool_index].cpu().numpy()
        return vectors


def read_batches(
    dataset: ImageDataset, indices: Sequence[int], decode: Callable[[StoredImage], Bytes], threads: int
) -> Iterator[PatchBatch]:
    """Reads some images of a dataset, a batch at a time; threads decode the next one meanwhile.

    Args:
        dataset: the images; broken ones are left out.
        indices: which of them to read.
        decode: makes patches uint8 [N, P] of an opened image.
        threads: number of threads.

    Raises:
        NoImages: none can be read.
    """

    def read(index: int) -> tuple[int, Bytes, int] | None:
        patches, label = dataset.load(index, decode)
        if dataset.paths[index] in dataset.broken:
            return None  # the patches are those of the next image, which has a turn of its own
        return index, patches, label

    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        ahead = pool.map(read, indices[:BATCH])
        for start in range(BATCH, len(indices) + BATCH, BATCH):
            samples = [sample for sample in ahead if sample]
            ahead = pool.map(read, indices[start : start + BATCH])
            if samples:
                numbers, patches, labels = zip(*samples, strict=True)
                yield PatchBatch(np.array(numbers), np.stack(patches), np.array(labels, dtype=np.int64))
