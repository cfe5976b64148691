"""Accuracy of a classifier on held-out images, which are prepared and classified as they will be served."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.heads import Head
from model.images.folders import LabelledImages
from model.images.open_image import MAX_PIXELS
from model.training.dataset import ImageDataset
from model.training.vectors import LabelledVectors, VectorEncoder

MEASURES = ("val_loss", "val_accuracy")
"""Names in metrics.csv and TensorBoard."""


class ValidationResult(NamedTuple):
    """Measurements on the images that could be read."""

    loss: float
    """Mean cross-entropy, in nats."""
    accuracy: float
    """Share of the images whose likeliest class is the right one (top-1)."""
    images: int
    """Number of the images."""

    @property
    def sentence(self) -> str:
        """Accuracy and loss for the user."""
        return f"{self.accuracy:.2%} of {self.images} held-out images right, loss {self.loss:.4f}"


class Validation:
    """Held-out images; each measurement decodes and classifies them anew."""

    def __init__(self, labelled: LabelledImages, threads: int, max_pixels: int = MAX_PIXELS) -> None:
        """Takes the images, which `threads` threads decode, each to at most `max_pixels`."""
        self._dataset = ImageDataset(labelled.paths, labelled.labels, max_pixels)
        self._threads = threads

    def measure(self, checkpoint: Checkpoint, head: Head, device: torch.device) -> ValidationResult:
        """Measures `head` on the encoder of `checkpoint`, in float32 on `device`.

        Raises:
            NoImages: none can be read.
        """
        encoder = VectorEncoder(checkpoint, head.config.pool, device, self._threads)
        return measure_head(head, encoder.batches(self._dataset, range(len(self._dataset.paths))))


def measure_head(head: Head, batches: Iterable[LabelledVectors]) -> ValidationResult:
    """Loss and accuracy of a head on vectors, at least one."""
    losses: list[float] = []
    correct = 0
    for _, vectors, labels in batches:
        probabilities = head.probabilities(vectors)
        correct += int((probabilities.argmax(axis=1) == labels).sum())
        of_label = probabilities[np.arange(len(labels)), labels].astype(np.float64)
        losses += (-np.log(np.maximum(of_label, np.finfo(np.float32).tiny))).tolist()
    return ValidationResult(float(np.mean(losses)), correct / len(losses), len(losses))
