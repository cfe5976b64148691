"""Optimisers and their parameter groups, the learning rate over a run, and the moving average of the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = re.compile(r"\bblocks\.(\d+)\.")
EMBEDDING = re.compile(r"\b(patch_embed|cls_token|pos_embed|stem|stem_norm)\b")
PRETRAINING_BETAS = (0.9, 0.95)  # He et al. 2021, table 8
FINETUNING_BETAS = (0.9, 0.999)  # He et al. 2021, table 9


def has_weight_decay(name: str, parameter: Tensor) -> bool:
    """Tells whether weight decay applies: to matrices and kernels, not to biases, norms and tokens."""
    return parameter.ndim > 1 and not name.endswith(("_token", "pos_embed"))


def parameter_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters: with weight decay and without."""
    trainable = [(name, p) for name, p in parameters if p.requires_grad]
    decayed = [p for name, p in trainable if has_weight_decay(name, p)]
    others = [p for name, p in trainable if not has_weight_decay(name, p)]
    return [
        {"params": decayed, "weight_decay": weight_decay, "scale": 1.0},
        {"params": others, "weight_decay": 0.0, "scale": 1.0},
    ]


def layer_decay_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float, depth: int, layer_decay: float
) -> list[dict[str, Any]]:
    """Groups of the trainable parameters by layer, with weight decay and without.

    A layer's `scale` is `layer_decay` to the power of the number of layers above it (Clark et al. 2020), as BEiT and
    MAE fine-tune (upstream util/lr_decay.py, param_groups_lrd). Layer 0 is the embedding, layers 1 to `depth` are the
    blocks, and layer `depth` + 1 has the last norm and the head.
    """
    layers: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in parameters:
        layers.setdefault(layer_index(name, depth), []).append((name, parameter))
    return [
        group | {"scale": layer_decay ** (depth + 1 - layer)}
        for layer, members in sorted(layers.items())
        for group in parameter_groups(members, weight_decay)
    ]


def layer_index(name: str, depth: int) -> int:
    """The layer that a parameter of an encoder with `depth` blocks belongs to."""
    if block := BLOCK.search(name):
        return int(block[1]) + 1
    return 0 if EMBEDDING.search(name) else depth + 1


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2017); `set_learning_rate` sets its learning rate at every step."""
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=betas, fused=True)


def muon(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float, scale: float) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for the matrices inside the blocks, AdamW for everything else.

    Muon's steps are scaled to AdamW's usual size (Liu et al. 2025, section 2.2), and then multiplied by `scale`.

    Raises:
        ValueError: there are no such matrices.
    """
    trainable = [(name, p) for name, p in parameters if p.requires_grad]
    matrices = [p for name, p in trainable if p.ndim == 2 and "blocks." in name]
    if not matrices:
        raise ValueError("the model has no matrices inside its blocks")
    chosen = {id(p) for p in matrices}
    others = [(name, p) for name, p in trainable if id(p) not in chosen]
    group: dict[str, Any] = {"params": matrices, "weight_decay": weight_decay, "scale": scale}
    return CombinedOptimiser(
        torch.optim.Muon([group], lr=0.0, adjust_lr_fn="match_rms_adamw"),
        adamw(parameter_groups(others, weight_decay), PRETRAINING_BETAS),
    )


class CombinedOptimiser(torch.optim.Optimizer):
    """Optimisers of disjoint parameters that step together."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        """Combines `parts`, whose groups it shares."""
        self.parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Steps each part; `closure` is not used."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Resets the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The state to save."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a saved state."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def learning_rate(done: float, peak: float, end: float, warmup: float) -> float:
    """The learning rate of the schedule: linear warm-up, then half a cosine (Loshchilov and Hutter 2016).

    Args:
        done: share of the run that is done, 0 to 1.
        peak: the rate at the end of the warm-up.
        end: the rate at the end of the run.
        warmup: share of the run in which the rate rises from 0.
    """
    if done < warmup:
        return peak * done / warmup
    along = (min(done, 1.0) - warmup) / (1 - warmup)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * along))


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of each group to `lr` times the group's own `scale`."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group["scale"]


class WeightAverage:
    """Exponential moving average of a model's trainable weights (after Polyak and Juditsky 1992)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begins with the weights as they are; `decay` is the share of the average that a step keeps."""
        self.decay = decay
        self._live = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._mean = [tensor.clone() for tensor in self._live]
        self._steps = 0

    def update(self) -> None:
        """Takes in the weights after a step. The decay grows at first, so that the average soon forgets its start."""
        self._steps += 1
        decay = min(self.decay, self._steps / (self._steps + 10))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)

    def apply_to(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`state` with the averages in place of the trainable weights."""
        return dict(state) | dict(zip(self._names, self._mean, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The state to save."""
        return {"steps": self._steps, "mean": self._mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a saved state."""
        self._steps = state["steps"]
        for mean, saved in zip(self._mean, state["mean"], strict=True):
            mean.copy_(saved)
