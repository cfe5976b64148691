"""The model run by torch itself: the reference for every other engine, and their visible fallback."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from model.checkpoint import Checkpoint
from model.config import Family
from model.engines.base import Bytes, EngineError, EngineInfo, Floats, Indices, gather_visible
from model.extras import Extras
from model.graphs import DecoderGraph, EncoderGraph
from model.masking import decoder_rows

# With fewer rows MKL takes other kernels, which round differently. So on a processor such a batch is filled with copies
# of its last image, and the bits of an image do not depend on who shares its batch.
LEAST_ROWS = 48
# The same for convolutions: a single image gets other kernels than several.
LEAST_IMAGES: dict[Family, int] = {"vit": 1, "resnet": 2}
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class EagerEngine:
    """The two graphs, uncompiled, on the device that `info` names."""

    def __init__(self, checkpoint: Checkpoint, info: EngineInfo) -> None:
        """Puts the graphs on the device in the precision of `info`."""
        self.info = info
        self.extras = Extras()
        self.lanes = info.lanes
        self.preferred_batch = info.preferred_batch
        self._device = torch.device(info.device)
        if self._device.type == "cpu":
            torch.set_num_threads(info.threads_per_lane)
        model = checkpoint.build(info.config.image_size)
        self._half = HALVES.get(info.precision)
        self._encoder = EncoderGraph(model, info.preprocessing).eval().to(self._device)
        self._decoder = (
            DecoderGraph(model, info.preprocessing).eval().to(self._device) if info.config.has_decoder else None
        )

    def embed(self, lane: int, patches: Bytes, positions: Indices) -> Floats:
        """See `Engine.embed`."""
        pooled, _ = self._encode(*self._filled(patches, positions))
        return _host(pooled)[: len(patches)]

    def tokens(self, lane: int, patches: Bytes, positions: Indices) -> Floats:
        """See `Engine.tokens`."""
        _, latent = self._encode(*self._filled(patches, positions))
        return _host(latent[:, 1:])[: len(patches)]

    def reconstruct(self, lane: int, patches: Bytes, positions: Indices) -> tuple[Bytes, Floats]:
        """See `Engine.reconstruct`."""
        if self._decoder is None:
            raise EngineError("the model has no decoder")
        count = len(patches)
        patches, positions = self._filled(patches, positions)
        _, latent = self._encode(gather_visible(patches, positions), positions)
        rows = decoder_rows(positions, self.info.config.num_patches)
        with self._inference():
            pixels, error = self._decoder(latent, self._send(rows), self._send(patches))
        return pixels.cpu().numpy()[:count], _host(error)[:count]

    def _filled(self, patches: Bytes, positions: Indices) -> tuple[Bytes, Indices]:
        count, visible = positions.shape
        family = self.info.config.family
        least = max(math.ceil(LEAST_ROWS / visible), LEAST_IMAGES[family]) if self._device.type == "cpu" else 1
        if count >= least:
            return patches, positions
        places = np.minimum(np.arange(least), count - 1)
        return patches[places], positions[places]

    def _encode(self, patches: Bytes, positions: Indices) -> tuple[Tensor, Tensor]:
        with self._inference():
            pooled, latent = self._encoder(self._send(patches), self._send(positions))
        return pooled, latent

    @contextmanager
    def _inference(self) -> Iterator[None]:
        # Half precision in the products alone: with positions and residuals in bfloat16 too, the gate refuses.
        half = torch.autocast(self._device.type, self._half or torch.bfloat16, enabled=self._half is not None)
        with torch.inference_mode(), half:
            yield

    def _send(self, array: Bytes | Indices) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def _host(tensor: Tensor) -> Floats:
    return np.asarray(tensor.float().cpu().numpy(), dtype=np.float32)
