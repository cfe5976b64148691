"""Layer-wise decay of the learning rate: the nearer to the pixels, the smaller the steps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from model.training.optimiser import plain_groups

BLOCK = re.compile(r"\bblocks\.(\d+)\.")
EMBEDDING = re.compile(r"\b(patch_embed|cls_token|pos_embed|stem|stem_norm)\b")


def layered_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float, depth: int, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups of the parameters that learn, by layer, with weight decay and without.

    A layer's `scale` is `layer_decay` to the power of the layers above it (Clark et al. 2020; BEiT and MAE fine-tune
    so): embedding 0, blocks 1 to `depth`, last norm and head `depth` + 1.
    """
    layers: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in parameters:
        layers.setdefault(layer_of(name, depth), []).append((name, parameter))
    return [
        group | {"scale": layer_decay ** (depth + 1 - layer)}
        for layer, members in sorted(layers.items())
        for group in plain_groups(members, weight_decay)
    ]


def layer_of(name: str, depth: int) -> int:
    """Which layer of an encoder with `depth` blocks a parameter belongs to."""
    if block := BLOCK.search(name):
        return int(block[1]) + 1
    return 0 if EMBEDDING.search(name) else depth + 1
