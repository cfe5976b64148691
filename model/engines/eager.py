"""The model run by torch itself: on a processor the reference for all engines, on a GPU their visible fallback."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.heads import Heads
from model.config import Family
from model.engines.base import EngineError, EngineInfo, gather_visible
from model.engines.export import DECODER, ENCODER, graphs_of
from model.masking import restore_indices_for

# With fewer rows MKL takes other kernels, which round differently. So on a processor such a batch is filled with copies
# of its last image, and the bits of an image do not depend on who shares its batch.
LEAST_ROWS = 48
# The same for convolutions: a single image gets other kernels than several.
LEAST_IMAGES: dict[Family, int] = {"vit": 1, "resnet": 2}


class EagerEngine:
    """The two graphs, uncompiled, on the processor."""

    def __init__(self, checkpoint: Checkpoint, info: EngineInfo) -> None:
        """Loads the graphs in the precision of `info`."""
        self.info = info
        self.heads = Heads()
        self.lanes = info.lanes
        self.preferred_batch = info.preferred_batch
        torch.set_num_threads(info.threads_per_lane)
        self._graphs = graphs_of(checkpoint, info.config, info.preprocessing, info.precision)

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.embed`."""
        pooled, _ = self._encode(*self._filled(patches, visible_indices))
        return pooled.numpy()[: len(patches)]

    def tokens(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.tokens`."""
        _, latent = self._encode(*self._filled(patches, visible_indices))
        return latent[:, 1:].numpy()[: len(patches)]

    def reconstruct(self, lane: int, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Floats]:
        """See `Engine.reconstruct`."""
        if DECODER not in self._graphs:
            raise EngineError("the model has no decoder")
        count = len(patches)
        patches, visible_indices = self._filled(patches, visible_indices)
        _, latent = self._encode(gather_visible(patches, visible_indices), visible_indices)
        restore_indices = restore_indices_for(visible_indices, self.info.config.num_patches)
        with torch.inference_mode():
            pixels, error = self._graphs[DECODER](latent, torch.from_numpy(restore_indices), torch.from_numpy(patches))
        return pixels.numpy()[:count], error.numpy()[:count]

    def _filled(self, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Indices]:
        count, visible = visible_indices.shape
        least = max(math.ceil(LEAST_ROWS / visible), LEAST_IMAGES[self.info.config.family])
        if count >= least:
            return patches, visible_indices
        places = np.minimum(np.arange(least), count - 1)
        return patches[places], visible_indices[places]

    def _encode(self, patches: Bytes, visible_indices: Indices) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            pooled, latent = self._graphs[ENCODER](torch.from_numpy(patches), torch.from_numpy(visible_indices))
        return pooled, latent
