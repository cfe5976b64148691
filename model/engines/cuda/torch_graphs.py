"""The graphs run by torch on a GPU: the visible fallback where TensorRT is missing or fails."""

from __future__ import annotations

from torch import Tensor, nn

from model.checkpoints.checkpoint import Checkpoint
from model.engines.base import EngineInfo
from model.engines.export import DECODER, ENCODER, PADDED_ENCODER, build_graphs


class TorchGraphs:
    """The graphs, uncompiled, for a `DeviceEngine`."""

    def __init__(self, checkpoint: Checkpoint, info: EngineInfo) -> None:
        """Puts the graphs on the device of `info`, in its precision."""
        graphs = build_graphs(checkpoint, info.config, info.preprocessing, info.precision, padded=info.mixes)
        self._graphs: dict[str, nn.Module] = {name: graph.to(info.device) for name, graph in graphs.items()}

    def encode(
        self, lane: int, patches: Tensor, visible_indices: Tensor, pooled: Tensor, latent: Tensor, padded: bool
    ) -> None:
        """See `CompiledGraphs.encode`."""
        outputs = self._graphs[PADDED_ENCODER if padded else ENCODER](patches, visible_indices)
        pooled.copy_(outputs[0])
        latent.copy_(outputs[1])

    def decode(
        self, lane: int, latent: Tensor, restore_indices: Tensor, patches: Tensor, pixels: Tensor, error: Tensor
    ) -> None:
        """See `CompiledGraphs.decode`."""
        outputs = self._graphs[DECODER](latent, restore_indices, patches)
        pixels.copy_(outputs[0])
        error.copy_(outputs[1])

    def reserve_for_capture(self, lane: int, batch: int, visible: int, decodes: bool) -> None:
        """Does nothing: torch keeps no state between calls."""
