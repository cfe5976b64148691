"""The graphs run by torch on a GPU, where TensorRT is missing or fails: as they are, or compiled by torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoints.checkpoint import Checkpoint
from model.engines.base import EngineInfo
from model.engines.export import DECODER, ENCODER, PADDED_ENCODER, build_graphs


class TorchGraphs:
    """The graphs, uncompiled, for a `DeviceEngine`."""

    def __init__(self, checkpoint: Checkpoint, info: EngineInfo) -> None:
        """Puts the graphs on the device of `info`, in its precision."""
        graphs = build_graphs(checkpoint, info.config, info.preprocessing, info.precision, padded=info.mixes)
        self.modules: dict[str, nn.Module] = {name: graph.to(info.device) for name, graph in graphs.items()}

    def encode(
        self, lane: int, patches: Tensor, visible_indices: Tensor, pooled: Tensor, latent: Tensor, padded: bool
    ) -> None:
        """See `CompiledGraphs.encode`."""
        batch, visible = visible_indices.shape
        outputs = self._graph(PADDED_ENCODER if padded else ENCODER, batch, visible)(patches, visible_indices)
        pooled.copy_(outputs[0])
        latent.copy_(outputs[1])

    def decode(
        self, lane: int, latent: Tensor, restore_indices: Tensor, patches: Tensor, pixels: Tensor, error: Tensor
    ) -> None:
        """See `CompiledGraphs.decode`."""
        batch, length, _ = latent.shape
        outputs = self._graph(DECODER, batch, length - 1)(latent, restore_indices, patches)
        pixels.copy_(outputs[0])
        error.copy_(outputs[1])

    def reserve_for_capture(self, lane: int, batch: int, visible: int, decodes: bool) -> None:
        """Does nothing: torch keeps no state between calls."""

    def _graph(self, name: str, batch: int, visible: int) -> Any:
        return self.modules[name]


class CompiledTorchGraphs(TorchGraphs):
    """The same graphs, compiled by torch.compile for the batches that are recorded as CUDA graphs.

    All other batches run uncompiled: a new size could need a compilation, which would take seconds of a request.
    """

    def __init__(self, graphs: TorchGraphs) -> None:
        """Compiles nothing yet: torch.compile does at the first call of a size. The weights are those of `graphs`."""
        self.modules = graphs.modules
        # Dynamic: one compilation holds for all sizes but 1, which torch always compiles by itself. The full graph,
        # because a part that is left out would run uncompiled.
        self._compiled = {
            name: torch.compile(module, fullgraph=True, dynamic=True)
            for name, module in self.modules.items()
            if name != PADDED_ENCODER
        }
        self._reserved: set[tuple[str, int, int]] = set()

    def reserve_for_capture(self, lane: int, batch: int, visible: int, decodes: bool) -> None:
        """Runs batches of this size compiled from now on."""
        self._reserved |= {(name, batch, visible) for name in ((ENCODER, DECODER) if decodes else (ENCODER,))}

    def _graph(self, name: str, batch: int, visible: int) -> Any:
        compiled = (name, batch, visible) in self._reserved
        return self._compiled[name] if compiled else self.modules[name]
