"""The classification head in training: linear, after a BatchNorm where the encoder is frozen."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from model.arrays import Floats
from model.checkpoints import heads

EPS = 1e-6  # facebookresearch/mae, main_linprobe.py


class LinearHead(nn.Module):
    """Pooled vectors [B, D] -> logits [B, C]."""

    def __init__(self, width: int, classes: int, normalised: bool) -> None:
        """Makes a linear layer that begins near zero.

        Args:
            width: D.
            classes: C.
            normalised: put a BatchNorm without affine before it (He et al. 2021, A.1), since features of a frozen
                encoder keep the scale of pretraining.
        """
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=EPS, affine=False) if normalised else nn.Identity()
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01 if normalised else 2e-5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, D] -> [B, C]."""
        logits: Tensor = self.linear(self.norm(vectors))
        return logits


def fold_batch_norm(state: Mapping[str, Tensor]) -> tuple[Floats, Floats]:
    """Folds the BatchNorm of a `LinearHead` in eval mode into its linear layer: weight [C, D] and bias [C]."""
    arrays = {name: tensor.float().cpu().numpy().copy() for name, tensor in state.items()}
    weight, bias = arrays["linear.weight"], arrays["linear.bias"]
    if "norm.running_mean" not in arrays:
        return weight, bias
    return heads.fold_batch_norm(weight, bias, arrays["norm.running_mean"], arrays["norm.running_var"], EPS)
