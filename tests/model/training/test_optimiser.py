from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from model.config import PRESETS
from model.nn.vit import MaskedAutoencoder
from model.training.optimiser import WeightAverage, learning_rate, muon, parameter_groups, set_learning_rate


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0, 0), (0.05, 0.5), (0.1, 1), (0.55, 0.55), (0.325, 0.1 + 0.9 * 0.8535533905932737), (1, 0.1), (1.2, 0.1)],
)
def test_warm_up_then_half_a_cosine(progress: float, expected: float) -> None:
    assert learning_rate(progress, peak=1, end=0.1, warmup=0.1) == pytest.approx(expected)


def upstream_rate(epoch: float, epochs: float, warmup_epochs: float, lr: float, min_lr: float) -> float:
    """The schedule of upstream's util/lr_sched.py, which counts in epochs."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    angle = math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * (1 + math.cos(angle)) / 2


@pytest.mark.parametrize(("epochs", "warmup_epochs", "min_lr"), [(20, 1, 0), (50, 5, 1e-6), (3, 0, 1e-4)])
def test_the_rates_of_a_whole_schedule_are_upstreams_in_every_group(
    epochs: int, warmup_epochs: int, min_lr: float
) -> None:
    steps_per_epoch, lr = 7, 1.5e-3
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "scale": scale} for scale in (1.0, 0.75**3)]
    optimiser = torch.optim.AdamW(groups)
    rates, expected = [], []
    for step in range(epochs * steps_per_epoch + 1):
        set_learning_rate(
            optimiser, learning_rate(step / (epochs * steps_per_epoch), lr, min_lr, warmup_epochs / epochs)
        )
        rates += [group["lr"] for group in optimiser.param_groups]
        rate = upstream_rate(step / steps_per_epoch, epochs, warmup_epochs, lr, min_lr)
        expected += [rate, rate * 0.75**3]
    assert rates == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert max(rates) == pytest.approx(lr)


def test_biases_norms_and_tokens_do_not_decay() -> None:
    model = MaskedAutoencoder(PRESETS["mae_tiny"])
    with_decay, without = parameter_groups(model.named_parameters(), 0.05)
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
    average = WeightAverage(layer, 0.9)
    expected = 0.0
    for step in range(1, 200):
        with torch.no_grad():
            layer.weight.fill_(step)
        average.update()
        decay = min(0.9, step / (step + 10))
        expected = decay * expected + (1 - decay) * step
    assert average.apply_to(layer.state_dict())["weight"].item() == pytest.approx(expected, rel=1e-5)


def orthogonality(step: torch.Tensor) -> float:
    """Largest singular value over the median one: near 1 for a step of Muon, large for a random matrix."""
    values = torch.linalg.svdvals(step)
    return float(values[0] / values.median())


def test_muon_turns_the_matrices_of_the_blocks_and_leaves_the_rest_to_adamw() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(PRESETS["mae_tiny"].model_copy(update={"depth": 1, "decoder_depth": 1}))
    learning = {name: p for name, p in model.named_parameters() if not name.endswith("pos_embed")}
    before = {name: p.detach().clone() for name, p in learning.items()}
    optimiser = muon(learning.items(), weight_decay=0, scale=3)
    set_learning_rate(optimiser, 0.01)
    for p in learning.values():
        p.grad = torch.randn_like(p).sign()  # AdamW divides by the size of the gradient
    optimiser.step()
    for name, p in learning.items():
        step = p.detach() - before[name]
        if "blocks." in name and p.ndim == 2:
            assert orthogonality(step) < 2, name
            assert float(step.square().mean().sqrt()) == pytest.approx(0.2 * 3 * 0.01, rel=0.2), name  # Liu et al. 2025
        else:  # AdamW's first step is the learning rate, whatever the gradient
            assert torch.allclose(step.abs(), torch.tensor(0.01), rtol=1e-2), name


def test_muon_goes_on_from_its_state() -> None:
    def trained(steps: int, state: tuple[dict[str, torch.Tensor], dict[str, object]] | None) -> nn.Module:
        torch.manual_seed(0)
        model = nn.ModuleDict({"blocks": nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))})
        optimiser = muon(model.named_parameters(), weight_decay=0.1, scale=2)
        if state is not None:
            model.load_state_dict(state[0])
            optimiser.load_state_dict(state[1])
        for _ in range(steps):
            set_learning_rate(optimiser, 0.05)
            optimiser.zero_grad()
            model["blocks"](torch.ones(3, 4)).square().sum().backward()
            optimiser.step()
        kept.append((model.state_dict(), optimiser.state_dict()))
        return model

    kept: list[tuple[dict[str, torch.Tensor], dict[str, object]]] = []
    whole = trained(6, None).state_dict()
    trained(3, None)
    resumed = trained(3, kept[-1]).state_dict()
    assert all(tensor.equal(whole[name]) for name, tensor in resumed.items())


def test_muon_without_matrices_says_so() -> None:
    with pytest.raises(ValueError, match="no matrices"):
        muon(nn.Conv2d(3, 3, 3).named_parameters(), 0, 1)
