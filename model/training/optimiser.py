"""Optimisers, the learning rate over a run, and the average of the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = re.compile(r"\bblocks\.(\d+)\.")
EMBEDDING = re.compile(r"\b(patch_embed|cls_token|pos_embed|stem|stem_norm)\b")
BETAS = (0.9, 0.95)  # He et al. 2021, table 8


def decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices and kernels, not to biases, norms and tokens."""
    return parameter.ndim > 1 and not name.endswith(("_token", "pos_embed"))


def plain_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of the parameters that learn: with weight decay and without."""
    learning = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    return [
        {"params": [p for name, p in learning if decayed(name, p)], "weight_decay": weight_decay, "scale": 1.0},
        {"params": [p for name, p in learning if not decayed(name, p)], "weight_decay": 0.0, "scale": 1.0},
    ]


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


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float] = BETAS) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2017), with the betas of pretraining; the learning rate is set at every step."""
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=betas, fused=True)


def muon(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float, scale: float) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for the matrices inside the blocks, AdamW for everything else.

    Muon's steps are scaled to AdamW's usual size (Liu et al. 2025, section 2.2), and then multiplied by `scale`.

    Raises:
        ValueError: there are no such matrices.
    """
    learning = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    hidden = [p for name, p in learning if p.ndim == 2 and "blocks." in name]
    if not hidden:
        raise ValueError("the model has no matrices inside its blocks")
    chosen = {id(p) for p in hidden}
    groups: list[dict[str, Any]] = [{"params": hidden, "weight_decay": weight_decay, "scale": scale}]
    matrices = torch.optim.Muon(groups, lr=0.0, adjust_lr_fn="match_rms_adamw")
    return Joint(matrices, adamw(plain_groups([(n, p) for n, p in learning if id(p) not in chosen], weight_decay)))


class Joint(torch.optim.Optimizer):
    """Optimisers of disjoint parameters that step as one."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        """Of `parts`, whose groups it shares."""
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Steps each part; there is no `closure`."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def learning_rate(progress: float, peak: float, floor: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine (Loshchilov and Hutter 2016), at `progress` 0..1 of the run."""
    if progress < warmup:
        return peak * progress / warmup
    along = (min(progress, 1.0) - warmup) / (1 - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * along))


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """`lr` times each group's own `scale`."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["scale"]


class Average:
    """Exponential moving average of a model's weights (Polyak and Juditsky 1992, as commonly run)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begins with the weights as they are."""
        self.decay = decay
        self._live = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._mean = [tensor.clone() for tensor in self._live]
        self._steps = 0

    def update(self) -> None:
        """After a step. Early on the average is over the steps so far, so that the start is soon forgotten."""
        self._steps += 1
        decay = min(self.decay, self._steps / (self._steps + 10))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)

    def over(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`state` with the averages in place of the weights that learn."""
        return dict(state) | dict(zip(self._names, self._mean, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"steps": self._steps, "mean": self._mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self._steps = state["steps"]
        for mean, saved in zip(self._mean, state["mean"], strict=True):
            mean.copy_(saved)
