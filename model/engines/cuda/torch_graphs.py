"""The graphs run by torch on a GPU: the visible fallback where TensorRT is missing or fails."""

from __future__ import annotations

from torch import Tensor, nn

from model.checkpoints.checkpoint import Checkpoint
from model.engines.base import EngineInfo
from model.engines.export import DECODER, ENCODER, MIXED, graphs_of


class TorchGraphs:
    """The two graphs, uncompiled, for a `DeviceEngine`."""

    def __init__(self, checkpoint: Checkpoint, info: EngineInfo) -> None:
        """Puts the graphs on the device of `info`, in its precision."""
        graphs = graphs_of(checkpoint, info.config, info.preprocessing, info.precision, mixed=info.mixes)
        self._graphs: dict[str, nn.Module] = {name: graph.to(info.device) for name, graph in graphs.items()}

    def encode(
        self, lane: int, patches: Tensor, visible_indices: Tensor, pooled: Tensor, latent: Tensor, mixed: bool
    ) -> None:
        """See `CompiledGraphs.encode`."""
        found = self._graphs[MIXED if mixed else ENCODER](patches, visible_indices)
        pooled.copy_(found[0])
        latent.copy_(found[1])

    def decode(
        self, lane: int, latent: Tensor, restore_indices: Tensor, patches: Tensor, pixels: Tensor, error: Tensor
    ) -> None:
        """See `CompiledGraphs.decode`."""
        found = self._graphs[DECODER](latent, restore_indices, patches)
        pixels.copy_(found[0])
        error.copy_(found[1])

    def reserve_for_capture(self, lane: int, batch: int, visible: int, decodes: bool) -> None:
        """Nothing to do: torch keeps no state between calls."""
