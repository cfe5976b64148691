"""Baselines to compare an engine with: the same graphs run by torch, eagerly and by torch.compile."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.checkpoint import Checkpoint
from model.engines.base import EngineError, EngineInfo, gather_visible
from model.engines.cpu import available_cpus
from model.engines.cuda.engine import DeviceEngine
from model.engines.cuda.torch_graphs import TorchGraphs
from model.masking import restore_indices_for
from model.nn.serving import DecoderGraph, EncoderGraph


class Baseline:
    """Torch as an `Engine` with one lane that has the whole device: autocast to float16 on CUDA, float32 elsewhere."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        info: EngineInfo,
        compiled: bool,
        *,
        dynamic: bool = True,
        mode: str | None = None,
    ) -> None:
        """Puts the graphs of `checkpoint` on the device that `info` names.

        Args:
            checkpoint: the model.
            info: names the device.
            compiled: compile the graphs by torch.compile.
            dynamic: compile them once for all batch sizes and K, as a server needs them: one graph per size would take
                minutes.
            mode: torch.compile's mode.
        """
        self._device = torch.device(info.device)
        self._half = self._device.type == "cuda"
        self._dynamic, self._mode = dynamic, mode
        if not self._half:
            torch.set_num_threads(available_cpus())
        precision = "fp16" if self._half else "fp32"
        self.info = info.model_copy(
            update={"backend": "torch", "precision": precision, "computes": precision, "lanes": 1, "parity": None}
        )
        model = checkpoint.build(info.config.image_size)
        self._encoder = self._prepare(EncoderGraph(model, info.preprocessing), compiled)
        self._decoder = (
            self._prepare(DecoderGraph(model, info.preprocessing), compiled) if info.config.has_decoder else None
        )

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.embed`."""
        return _to_host(self._encode(patches, visible_indices)[0])

    def tokens(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.tokens`."""
        return _to_host(self._encode(patches, visible_indices)[1][:, 1:])

    def reconstruct(self, lane: int, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Floats]:
        """See `Engine.reconstruct`."""
        if self._decoder is None:
            raise EngineError("the model has no decoder")
        latent = self._encode(gather_visible(patches, visible_indices), visible_indices)[1]
        restore_indices = restore_indices_for(visible_indices, self.info.config.num_patches)
        pixels, error = self._run(self._decoder, latent, self._to_device(restore_indices), self._to_device(patches))
        return pixels.cpu().numpy(), _to_host(error)

    def _prepare(self, graph: nn.Module, compiled: bool) -> Any:
        graph = graph.eval().to(self._device)
        if not compiled:
            return graph
        # The full graph, because a part that is left out would run eagerly under the compiler's name.
        return torch.compile(graph, fullgraph=True, dynamic=self._dynamic, mode=self._mode)

    def _encode(self, patches: Bytes, visible_indices: Indices) -> tuple[Tensor, Tensor]:
        pooled, latent = self._run(self._encoder, self._to_device(patches), self._to_device(visible_indices))
        return pooled, latent

    def _run(self, graph: Any, *arguments: Tensor) -> Any:
        with torch.inference_mode(), torch.autocast(self._device.type, torch.float16, enabled=self._half):
            return graph(*arguments)

    def _to_device(self, array: Bytes | Indices) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def record_cuda_graphs(checkpoint: Checkpoint, info: EngineInfo) -> DeviceEngine:
    """The graphs run by torch on a GPU in the precision of `info`, its usual batches recorded as CUDA graphs."""
    plain = info.model_copy(update={"mixes": False})
    return DeviceEngine(TorchGraphs(checkpoint, plain), plain, cuda_graphs=True)


def _to_host(tensor: Tensor) -> Floats:
    return np.asarray(tensor.float().cpu().numpy(), dtype=np.float32)
