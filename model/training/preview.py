"""Reconstructions of a few images, as a model in pretraining makes them."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from model.arrays import Bytes, Indices
from model.checkpoints.checkpoint import Checkpoint
from model.images.png import encode_png
from model.images.preprocess import patches_of
from model.images.render import panel, sheet
from model.masking import choose_visible, restore_indices_for
from model.nn.serving import DecoderGraph, EncoderGraph
from model.training.dataset import Augmentation, ImageDataset


class Preview:
    """A few fixed images under fixed masks."""

    def __init__(self, dataset: ImageDataset, augmentation: Augmentation, count: int) -> None:
        """Reads the first `count` images of a fixed shuffle, without the augmentation's crops.

        Raises:
            NoImages: none can be read.
        """
        config = augmentation.config
        decode = partial(patches_of, config=config, preprocessing=augmentation.preprocessing)
        chosen = np.random.default_rng(0).permutation(len(dataset.paths))[:count].tolist()
        self._patches: Bytes = np.stack([dataset.load(index, decode)[0] for index in chosen])  # [B, N, P]
        self._visible_indices: Indices = np.stack(
            [
                choose_visible(augmentation.strategy, config.grid, augmentation.mask_ratio, seed)
                for seed in range(len(chosen))
            ]
        )  # [B, K]

    def render(self, checkpoint: Checkpoint) -> bytes:
        """Original, masked, reconstruction and composite of each image on one sheet, as PNG."""
        model = checkpoint.build()
        visible = np.take_along_axis(self._patches, self._visible_indices[..., None].astype(np.int64), axis=1)
        restore_indices = restore_indices_for(self._visible_indices, checkpoint.config.num_patches)
        with torch.inference_mode():
            _, latent = EncoderGraph(model, checkpoint.preprocessing)(
                torch.from_numpy(visible), torch.from_numpy(self._visible_indices)
            )
            pixels, _ = DecoderGraph(model, checkpoint.preprocessing)(
                latent, torch.from_numpy(restore_indices), torch.from_numpy(self._patches)
            )
        panels = map(panel, self._patches, pixels.numpy(), self._visible_indices)
        return encode_png(sheet(list(panels)))
