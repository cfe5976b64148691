"""The masked loss of any mask, against sums that are written out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.config import Loss
from model.nn.losses import masked_loss, patch_loss


def loss_of_patch(pred: list[float], target: list[float], kind: Loss, norm_pix: bool) -> float:
    size = len(pred)
    if norm_pix:
        mean = sum(target) / size
        std = math.sqrt(sum((value - mean) ** 2 for value in target) / (size - 1) + 1e-6)
        target = [(value - mean) / std for value in target]
    if kind == "mse":
        return sum((p - t) ** 2 for p, t in zip(pred, target, strict=True)) / size
    lengths = math.hypot(*pred) * math.hypot(*target)
    return 1 - sum(p * t for p, t in zip(pred, target, strict=True)) / lengths


@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(2, 12),
    st.sampled_from(["mse", "cosine"]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_loss_of_any_mask(
    batch: int, count: int, size: int, kind: Loss, norm_pix: bool, seed: int, data: st.DataObject
) -> None:
    flags = st.lists(st.integers(0, 1), min_size=count, max_size=count)
    mask = data.draw(st.lists(flags, min_size=batch, max_size=batch).filter(lambda mask: any(map(any, mask))))
    generator = torch.Generator().manual_seed(seed)
    pred, target = torch.randn(2, batch, count, size, generator=generator, dtype=torch.float64)
    expected = [
        [loss_of_patch(p, t, kind, norm_pix) for p, t in zip(*pair, strict=True)]
        for pair in zip(pred.tolist(), target.tolist(), strict=True)
    ]
    for own, row in zip(patch_loss(pred, target, kind, norm_pix).tolist(), expected, strict=True):
        assert own == pytest.approx(row, rel=1e-6, abs=1e-7)
    removed = [loss for row, of in zip(expected, mask, strict=True) for loss, flag in zip(row, of, strict=True) if flag]
    loss = masked_loss(pred, target, torch.tensor(mask), kind, norm_pix).item()
    assert loss == pytest.approx(sum(removed) / len(removed), rel=1e-6, abs=1e-7)
