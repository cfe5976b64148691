"""The model run by torch itself on the CPU: the reference for all engines, and an engine too."""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from torch import Tensor

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.checkpoint import Checkpoint
from model.config import Family
from model.engines.base import EngineError, EngineInfo, gather_visible
from model.engines.export import DECODER, ENCODER, build_graphs
from model.masking import restore_indices_for

# With fewer rows in a matrix product, libraries take other kernels, which round differently. So such a batch is filled
# with copies of its last image, and the bits of an image do not depend on the other images of its batch.
MIN_ROWS = 48
# The same holds for convolutions: a single image gets other kernels than several.
MIN_IMAGES: dict[Family, int] = {"vit": 1, "resnet": 2}


def configure_torch(threads: int) -> None:
    """Sets how torch multiplies matrices on the CPU, for the whole process. Call it before the first product.

    In MKL's strict mode the bits of a row do not depend on how many rows are multiplied: without it they do, by the
    number of rows on any CPU, and by its remainder on a CPU with AVX2 alone. It costs no time that can be measured.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    torch.set_num_threads(threads)


class EagerEngine:
    """The two graphs, uncompiled, on the CPU, with as many threads as `configure_torch` has set."""

    def __init__(self, checkpoint: Checkpoint, info: EngineInfo) -> None:
        """Loads the graphs in the precision of `info`."""
        self.info = info
        self._graphs = build_graphs(checkpoint, info.config, info.preprocessing, info.precision)

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.embed`."""
        pooled, _ = self._encode(*self._fill_up(patches, visible_indices))
        return pooled.numpy()[: len(patches)]

    def tokens(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.tokens`."""
        _, latent = self._encode(*self._fill_up(patches, visible_indices))
        return latent[:, 1:].numpy()[: len(patches)]

    def reconstruct(self, lane: int, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Floats]:
        """See `Engine.reconstruct`."""
        if DECODER not in self._graphs:
            raise EngineError("the model has no decoder")
        count = len(patches)
        patches, visible_indices = self._fill_up(patches, visible_indices)
        _, latent = self._encode(gather_visible(patches, visible_indices), visible_indices)
        restore_indices = restore_indices_for(visible_indices, self.info.config.num_patches)
        with torch.inference_mode():
            pixels, error = self._graphs[DECODER](latent, torch.from_numpy(restore_indices), torch.from_numpy(patches))
        return pixels.numpy()[:count], error.numpy()[:count]

    def _fill_up(self, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Indices]:
        """Repeats the last image of a batch that is too small for the usual kernels."""
        count, visible = visible_indices.shape
        min_count = max(math.ceil(MIN_ROWS / visible), MIN_IMAGES[self.info.config.family])
        if count >= min_count:
            return patches, visible_indices
        order = np.minimum(np.arange(min_count), count - 1)
        return patches[order], visible_indices[order]

    def _encode(self, patches: Bytes, visible_indices: Indices) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            pooled, latent = self._graphs[ENCODER](torch.from_numpy(patches), torch.from_numpy(visible_indices))
        return pooled, latent
