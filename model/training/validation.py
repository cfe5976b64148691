"""How well a classifier does on images that it does not learn from, prepared and classified as they will be served."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from model.arrays import Bytes
from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.heads import ROWS, Head
from model.config import MAEConfig, Preprocessing
from model.images.folders import Labelled
from model.images.preprocess import cut, square
from model.masking import all_indices
from model.nn.serving import EncoderGraph
from model.training.dataset import ImageDataset

MEASURES = ("val_loss", "val_accuracy")
"""Their names in metrics.csv and TensorBoard."""
BATCH = 32


class Measured(NamedTuple):
    """Over the images that could be read."""

    loss: float
    """Mean cross-entropy, in nats."""
    accuracy: float
    """Share of the images whose likeliest class is theirs (top-1)."""
    images: int


class Validation:
    """Images that are decoded and classified anew at each measurement."""

    def __init__(self, labelled: Labelled, config: MAEConfig, preprocessing: Preprocessing, workers: int) -> None:
        """Decodes by `workers` threads."""
        self._photographs = ImageDataset(labelled.paths, labelled.labels)
        self._config = config
        self._preprocessing = preprocessing
        self._workers = workers

    def measure(self, checkpoint: Checkpoint, head: Head, device: torch.device) -> Measured:
        """Loss and accuracy of `head` on the encoder of `checkpoint`, in float32 on `device`.

        Raises:
            NoImages: none can be read.
        """
        model = checkpoint.build().to(device)
        graph = EncoderGraph(model, checkpoint.preprocessing).to(device)
        whole = torch.from_numpy(all_indices(self._config.num_patches)).to(device)
        losses: list[float] = []
        right = 0
        count = len(self._photographs.paths)
        with ThreadPoolExecutor(self._workers, thread_name_prefix="validate") as pool, torch.inference_mode():
            for start in range(0, count, BATCH):
                read = [pair for pair in pool.map(self._read, range(start, min(start + BATCH, count))) if pair]
                if not read:
                    continue
                patches, labels = zip(*read, strict=True)
                pooled, _ = graph(torch.from_numpy(np.stack(patches)).to(device), whole.expand(len(read), -1))
                probabilities = head.probabilities(pooled[:, ROWS[head.facts.pool]].cpu().numpy())
                right += int((probabilities.argmax(axis=1) == np.array(labels)).sum())
                own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
                losses += (-np.log(np.maximum(own, np.finfo(np.float32).tiny))).tolist()
        return Measured(float(np.mean(losses)), right / len(losses), len(losses))

    def _read(self, index: int) -> tuple[Bytes, int] | None:
        """Patches uint8 [N, P] of an image and its class; None if it is broken."""
        image, label = self._photographs.load(index, self._config.image_size)
        if self._photographs.paths[index] in self._photographs.broken:
            return None  # what was loaded is the next image, which has a turn of its own
        pixels = np.asarray(square(image, self._config, self._preprocessing))
        return cut(pixels, self._config.patch_size), label
