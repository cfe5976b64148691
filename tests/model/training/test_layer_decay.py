from __future__ import annotations

import pytest
from torch import nn

from model.config import PRESETS
from model.nn.base import let_learn
from model.nn.vit import MaskedAutoencoder
from model.training.optimiser import layer_of, layered_groups

CONFIG = PRESETS["mae_tiny"].model_copy(update={"image_size": 32, "depth": 3, "decoder_depth": 0})


def test_scales_by_hand() -> None:
    model = MaskedAutoencoder(CONFIG)
    let_learn(model)
    objective = nn.ModuleDict({"encoder": nn.ModuleDict({"model": model}), "head": nn.Linear(192, 5)})
    groups = layered_groups(objective.named_parameters(), 0.05, depth=3, layer_decay=0.5)
    found = {id(p): (group["scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    said = {name: found.get(id(p)) for name, p in objective.named_parameters()}
    expected = {
        "encoder.model.cls_token": (0.0625, 0),  # 0.5 ** 4
        "encoder.model.patch_embed.proj.weight": (0.0625, 0.05),
        "encoder.model.patch_embed.proj.bias": (0.0625, 0),
        "encoder.model.blocks.0.attn.qkv.weight": (0.125, 0.05),
        "encoder.model.blocks.0.norm1.weight": (0.125, 0),
        "encoder.model.blocks.1.mlp.fc1.weight": (0.25, 0.05),
        "encoder.model.blocks.2.mlp.fc2.bias": (0.5, 0),
        "encoder.model.norm.weight": (1, 0),
        "head.weight": (1, 0.05),
        "head.bias": (1, 0),
        "encoder.model.pos_embed": None,  # sine-cosine tables do not learn
    }
    assert {name: said[name] for name in expected} == expected
    assert sum(len(group["params"]) for group in groups) == len(said) - 1


def test_what_does_not_learn_is_in_no_group() -> None:
    model = MaskedAutoencoder(CONFIG).requires_grad_(False)
    parts = nn.ModuleDict({"model": model, "head": nn.Linear(192, 5)})
    groups = [g for g in layered_groups(parts.named_parameters(), 0.05, 3, 0.75) if g["params"]]
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
def test_a_stem_is_the_first_layer(name: str, layer: int) -> None:
    assert layer_of(name, PRESETS["resnet_tiny"].depth) == layer
