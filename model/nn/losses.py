"""The reconstruction losses; the mean is over the removed patches alone (He et al. 2021, section 3)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from model.config import Loss


def masked_loss(pred: Tensor, target: Tensor, mask: Tensor, kind: Loss = "mse", norm_pix: bool = False) -> Tensor:
    """Mean loss of the removed patches, a scalar.

    Args:
        pred: the decoder's prediction, [B, N, P].
        target: the image's patches in standardised pixels, [B, N, P].
        mask: 1 = removed, 0 = kept, [B, N].
        kind: `mse`, or `cosine` for 1 - cos(pred, target) of each patch.
        norm_pix: compare with patches normalised by their own mean and variance (the paper's `w/ norm`).
    """
    loss = patch_loss(pred, target, kind, norm_pix)
    return (loss * mask).sum() / mask.sum()


def patch_loss(pred: Tensor, target: Tensor, kind: Loss = "mse", norm_pix: bool = False) -> Tensor:
    """Loss of every patch, visible or not: [B, N, P], [B, N, P] -> [B, N]."""
    if norm_pix:
        mean, std = patch_statistics(target)
        target = (target - mean) / std
    if kind == "cosine":
        return 1 - F.cosine_similarity(pred, target, dim=-1)
    return (pred - target).square().mean(-1)


def patch_statistics(target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch, [B, N, 1] each; unbiased variance plus 1e-6, as upstream."""
    return target.mean(-1, keepdim=True), (target.var(-1, keepdim=True) + 1e-6).sqrt()
