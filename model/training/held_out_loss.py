"""The masked loss on held-out images: whether pretraining makes a model better on images that it does not see."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from model.checkpoints.checkpoint import Checkpoint
from model.config import Loss
from model.images.preprocess import patches_of
from model.masking import choose_visible
from model.nn.serving import Standardise
from model.training.dataset import Augmentation, ImageDataset
from model.training.vectors import read_batches

MEASURE = "val_loss"
"""Name in metrics.csv and TensorBoard."""
MAX_HELD_OUT = 1024
"""Most images that are held out, so that a measurement takes seconds."""


class HeldOutLoss:
    """Held-out images under fixed masks, without crops; each measurement decodes them anew."""

    def __init__(self, dataset: ImageDataset, augmentation: Augmentation, loss: Loss, threads: int) -> None:
        """Takes the images.

        Args:
            dataset: the images.
            augmentation: gives mask ratio and strategy.
            loss: the loss of a removed patch.
            threads: threads that decode.
        """
        self._dataset = dataset
        self._augmentation = augmentation
        self._loss: Loss = loss
        self._threads = threads

    def measure(self, checkpoint: Checkpoint, device: torch.device) -> float:
        """The mean loss over the images that can be read, in float32 on `device`.

        Raises:
            NoImages: none can be read.
        """
        config, augmentation = checkpoint.config, self._augmentation
        model = checkpoint.build().to(device)
        standardise = Standardise(checkpoint.preprocessing, config.patch_size).to(device)
        decode = partial(patches_of, config=config, preprocessing=checkpoint.preprocessing)
        losses, counts = [], []
        numbers = range(len(self._dataset.paths))
        for indices, patches, _ in read_batches(self._dataset, numbers, decode, self._threads):
            visible_indices = np.stack(
                [
                    choose_visible(augmentation.strategy, config.grid, augmentation.mask_ratio, seed)
                    for seed in indices.tolist()
                ]
            )  # [B, K]
            with torch.inference_mode():
                pixels = standardise(torch.from_numpy(patches).to(device))
                loss, _, _ = model(pixels, torch.from_numpy(visible_indices).to(device), self._loss)
            losses.append(float(loss))
            counts.append(len(indices))
        return float(np.average(losses, weights=counts))


def choose_held_out_images(count: int, share: float, seed: int) -> set[int]:
    """Chooses the indices of a share of `count` images: at least one and at most `MAX_HELD_OUT`, but never all."""
    if share == 0:
        return set()
    number = min(max(1, round(share * count)), MAX_HELD_OUT, count - 1)
    return set(np.random.default_rng((seed, 4)).permutation(count)[: max(0, number)].tolist())
