"""The attention kernel that torch takes on a device, as seen when a graph runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from model.config import MAEConfig
from model.engines.export import DECODER, PADDED_ENCODER
from model.nn.vit import Attention

KERNELS = {"flash": "flash", "efficient": "memory-efficient", "cudnn": "cudnn", "overrideable": "overrideable"}
"""Kernels by the word in the names of torch's operators, such as aten::_scaled_dot_product_flash_attention."""
PREFIX = "aten::_scaled_dot_product_"


def attention_kernels(graphs: Mapping[str, nn.Module], config: MAEConfig, device: str) -> dict[str, str]:
    """The kernel of each graph's attention: flash, memory-efficient, cudnn, or math (no single kernel).

    Every graph runs once, with two whole images. A graph without attention has no kernel.

    Args:
        graphs: the graphs by name, on the device.
        config: the model's sizes.
        device: the device.
    """
    n = config.num_patches
    patches = torch.zeros(2, n, config.patch_dim, dtype=torch.uint8, device=device)
    visible_indices = torch.arange(n, dtype=torch.int32, device=device).repeat(2, 1)
    latent = torch.zeros(2, 1 + n, config.embed_dim, device=device)
    kernels = {}
    for name, graph in graphs.items():
        if not any(isinstance(module, Attention) for module in graph.modules()):
            continue
        indices = visible_indices.clone()
        if name == PADDED_ENCODER:
            indices[1, n // 2 :] = -1
        arguments = (latent, visible_indices, patches) if name == DECODER else (patches, indices)
        # In inference mode a dispatch mode sees the call of attention, not the kernel that it takes.
        with torch.no_grad(), _Kernels() as seen:
            graph(*arguments)
        kernels[name] = " and ".join(sorted(seen.kernels)) or "math"
    return kernels


class _Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the attention kernels among the operators that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name.startswith(PREFIX):
            word = name.removeprefix(PREFIX).partition("_")[0]
            self.kernels.add(KERNELS.get(word, word))
        return func(*args, **(kwargs or {}))
