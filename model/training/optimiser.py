"""Optimisers, the learning rate over a run, and the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

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


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float] = BETAS) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2017), with the betas of pretraining; the learning rate is set at every step."""
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=betas, fused=True)


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
