from __future__ import annotations

import pytest
import torch
from torch import nn

from model.config import PRESETS
from model.mae import MaskedAutoencoder
from model.training.optimiser import Average, learning_rate, plain_groups


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0, 0), (0.05, 0.5), (0.1, 1), (0.55, 0.55), (0.325, 0.1 + 0.9 * 0.8535533905932737), (1, 0.1), (1.2, 0.1)],
)
def test_warm_up_then_half_a_cosine(progress: float, expected: float) -> None:
    assert learning_rate(progress, peak=1, floor=0.1, warmup=0.1) == pytest.approx(expected)


def test_biases_norms_and_tokens_do_not_decay() -> None:
    model = MaskedAutoencoder(PRESETS["mae_tiny"])
    with_decay, without = plain_groups(model.named_parameters(), 0.05)
    assert (with_decay["weight_decay"], without["weight_decay"]) == (0.05, 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(names[id(p)].endswith("weight") and "norm" not in names[id(p)] for p in with_decay["params"])
    plain = [names[id(p)] for p in without["params"]]
    assert {"cls_token", "mask_token", "norm.weight", "blocks.0.attn.qkv.bias"} <= set(plain)
    assert not any(name.endswith("pos_embed") for name in plain)


def test_the_average_follows_the_weights() -> None:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0)
    average = Average(layer, 0.9)
    expected = 0.0
    for step in range(1, 200):
        with torch.no_grad():
            layer.weight.fill_(step)
        average.update()
        decay = min(0.9, step / (step + 10))
        expected = decay * expected + (1 - decay) * step
    assert average.over(layer.state_dict())["weight"].item() == pytest.approx(expected, rel=1e-5)
