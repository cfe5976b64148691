"""Layer-wise learning rates against MAE's fine-tuning recipe (upstream util/lr_decay.py, after BEiT)."""

from __future__ import annotations

from typing import Literal

import pytest
from torch import nn

from model.config import PRESETS
from model.nn.base import unfreeze
from model.nn.vit import MaskedAutoencoder
from model.training.optimiser import layer_decay_groups, layer_index

CONFIG = PRESETS["mae_tiny"].model_copy(update={"image_size": 32, "depth": 3, "decoder_depth": 0})


def settings_by_parameter(groups: list[dict[str, object]]) -> dict[int, tuple[object, object]]:
    """Scale of the learning rate and weight decay, by the parameter's id."""
    return {id(p): (group["scale"], group["weight_decay"]) for group in groups for p in group["params"]}  # type: ignore[attr-defined]


def upstream_settings(
    model: MaskedAutoencoder, head: nn.Module, weight_decay: float, layer_decay: float
) -> dict[int, tuple[float, float]]:
    """Upstream's rule, told by modules instead of names.

    A parameter of layer l of the L + 2 layers has the scale decay ** (L + 1 - l). The embeddings are layer 0, block i
    is layer i + 1, and everything after the blocks is layer L + 1. Vectors have no weight decay, nor have the tokens
    and tables that timm's ViT names in `no_weight_decay`.
    """
    layers: list[list[nn.Parameter]] = [[model.cls_token, model.pos_embed, *model.patch_embed.parameters()]]
    layers += [list(block.parameters()) for block in model.blocks]
    layers += [[*model.norm.parameters(), *head.parameters()]]
    settings = {}
    for layer, parameters in enumerate(layers):
        for p in parameters:
            decays = p.ndim != 1 and p is not model.cls_token and p is not model.pos_embed
            if p.requires_grad:
                settings[id(p)] = (layer_decay ** (len(layers) - 1 - layer), weight_decay if decays else 0.0)
    return settings


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize(("weight_decay", "layer_decay"), [(0.05, 0.75), (0.3, 0.5), (0, 1)])
def test_groups_are_those_of_upstream(
    positions: Literal["sincos", "learned"], weight_decay: float, layer_decay: float
) -> None:
    model, head = MaskedAutoencoder(CONFIG.model_copy(update={"positions": positions})), nn.Linear(192, 5)
    unfreeze(model)
    objective = nn.ModuleDict({"encoder": nn.ModuleDict({"model": model}), "head": head})
    groups = layer_decay_groups(objective.named_parameters(), weight_decay, CONFIG.depth, layer_decay)
    settings, expected = settings_by_parameter(groups), upstream_settings(model, head, weight_decay, layer_decay)
    assert settings.keys() == expected.keys()
    for name, p in objective.named_parameters():
        if p.requires_grad:
            assert settings[id(p)] == pytest.approx(expected[id(p)]), name
    assert (id(model.pos_embed) in settings) == (positions == "learned")
    assert sum(len(group["params"]) for group in groups) == len(settings), "no parameter is in two groups"


def test_some_scales_by_hand() -> None:
    model = MaskedAutoencoder(CONFIG)
    unfreeze(model)
    settings = settings_by_parameter(layer_decay_groups(model.named_parameters(), 0.05, depth=3, layer_decay=0.5))
    assert settings[id(model.patch_embed.proj.weight)] == (0.0625, 0.05)  # 0.5 ** 4
    assert settings[id(model.blocks[1].mlp.fc1.weight)] == (0.25, 0.05)
    assert settings[id(model.norm.weight)] == (1, 0)


def test_frozen_parameters_are_in_no_group() -> None:
    model = MaskedAutoencoder(CONFIG).requires_grad_(False)
    parts = nn.ModuleDict({"model": model, "head": nn.Linear(192, 5)})
    groups = [g for g in layer_decay_groups(parts.named_parameters(), 0.05, 3, 0.75) if g["params"]]
    assert [(len(g["params"]), g["scale"]) for g in groups] == [(1, pytest.approx(1)), (1, pytest.approx(1))]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.model.stem.weight", 0),
        ("encoder.model.stem_norm.weight", 0),
        ("encoder.model.blocks.6.conv1.weight", 7),
        ("encoder.model.norm.weight", 8),
        ("head.weight", 8),
    ],
)
def test_the_stem_of_a_convolutional_encoder_is_the_first_layer(name: str, layer: int) -> None:
    assert layer_index(name, PRESETS["resnet_tiny"].depth) == layer
