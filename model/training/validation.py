"""Accuracy of a classifier on held-out images, which are prepared and classified as they will be served."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from model.arrays import Bytes
from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.heads import POOL_INDEX, Head
from model.config import MAEConfig, Preprocessing
from model.images.folders import LabelledImages
from model.images.open_image import MAX_PIXELS
from model.images.preprocess import patches_of
from model.masking import all_indices
from model.nn.serving import EncoderGraph
from model.training.dataset import ImageDataset

MEASURES = ("val_loss", "val_accuracy")
"""Names in metrics.csv and TensorBoard."""
BATCH = 32


class ValidationResult(NamedTuple):
    """Measurements on the images that could be read."""

    loss: float
    """Mean cross-entropy, in nats."""
    accuracy: float
    """Share of the images whose likeliest class is the right one (top-1)."""
    images: int
    """Number of the images."""


class Validation:
    """Held-out images; each measurement decodes and classifies them anew."""

    def __init__(
        self,
        labelled: LabelledImages,
        config: MAEConfig,
        preprocessing: Preprocessing,
        threads: int,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Takes the images, which `threads` threads decode, each to at most `max_pixels`."""
        self._dataset = ImageDataset(labelled.paths, labelled.labels, max_pixels)
        self._decode = partial(patches_of, config=config, preprocessing=preprocessing)
        self._num_patches = config.num_patches
        self._threads = threads

    def measure(self, checkpoint: Checkpoint, head: Head, device: torch.device) -> ValidationResult:
        """Measures `head` on the encoder of `checkpoint`, in float32 on `device`.

        Raises:
            NoImages: none can be read.
        """
        model = checkpoint.build().to(device)
        graph = EncoderGraph(model, checkpoint.preprocessing).to(device)
        visible_indices = torch.from_numpy(all_indices(self._num_patches)).to(device)
        losses: list[float] = []
        correct = 0
        count = len(self._dataset.paths)
        with ThreadPoolExecutor(self._threads, thread_name_prefix="validate") as pool, torch.inference_mode():
            for start in range(0, count, BATCH):
                samples = [pair for pair in pool.map(self._read, range(start, min(start + BATCH, count))) if pair]
                if not samples:
                    continue
                patches, labels = zip(*samples, strict=True)
                batch = torch.from_numpy(np.stack(patches)).to(device)  # [B, N, P]
                pooled, _ = graph(batch, visible_indices.expand(len(samples), -1))
                probabilities = head.probabilities(pooled[:, POOL_INDEX[head.config.pool]].cpu().numpy())
                correct += int((probabilities.argmax(axis=1) == np.array(labels)).sum())
                of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
                losses += (-np.log(np.maximum(of_label, np.finfo(np.float32).tiny))).tolist()
        return ValidationResult(float(np.mean(losses)), correct / len(losses), len(losses))

    def _read(self, index: int) -> tuple[Bytes, int] | None:
        """Patches uint8 [N, P] of an image and its class; None if the image is broken."""
        patches, label = self._dataset.load(index, self._decode)
        if self._dataset.paths[index] in self._dataset.broken:
            return None  # the patches are those of the next image, which has a turn of its own
        return patches, label
