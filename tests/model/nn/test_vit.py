"""The model against transformers' ViTMAE, an implementation that shares no code with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoints.checkpoint import load
from model.config import PRESETS, MAEConfig
from model.nn.vit import MaskedAutoencoder, patchify, sincos_positions, unpatchify

if TYPE_CHECKING:  # importing it takes seconds
    from transformers import ViTMAEForPreTraining

TINY = {  # the sizes of both perceptrons are odd, and in floating point a hair below their ratio times the width
    "hidden_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 123,
    "image_size": 40,
    "patch_size": 8,
    "decoder_hidden_size": 28,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 61,
}
UPSTREAM = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "vit.layernorm": "norm",
    "vit.layers": "blocks",
    "decoder.decoder_layers": "decoder_blocks",
    "decoder.": "",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
}


def fixed_positions(width: int, grid: int) -> Tensor:
    """Transformers' own table [1, 1 + N, width], its halves swapped as its ViTMAE does to match published weights."""
    from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

    return build_2d_sinusoidal_position_embedding(grid, grid, width, cls_token=True).roll(width // 2, dims=-1)[None]


def randomised(**changes: object) -> ViTMAEForPreTraining:
    """A ViTMAE of which no weight is zero or one, biases, norms, cls and mask token included; positions are fixed."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    reference = ViTMAEForPreTraining(ViTMAEConfig(**TINY | changes)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            if "pos" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2 + ("layernorm" in name))
            else:
                weight.copy_(fixed_positions(weight.shape[-1], 5))
    return reference


def to_upstream(reference: ViTMAEForPreTraining) -> dict[str, Tensor]:
    """The same weights under the names of facebookresearch/mae."""
    state = {}
    for name, tensor in reference.state_dict().items():
        for theirs, ours in UPSTREAM.items():
            name = name.replace(theirs, ours)
        state[name] = tensor
    for query in [name for name in state if "q_proj" in name]:
        parts = [state.pop(query.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        state[query.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    return state


def compare(model: MaskedAutoencoder, reference: ViTMAEForPreTraining) -> None:
    """Asserts that both say the same of the same images and noise."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 40, 40, generator=generator)
    noise = torch.rand(2, 25, generator=generator)
    kept = noise.argsort(dim=1)[:, :6].sort(dim=1).values  # int(25 * 0.25), in our order
    with torch.no_grad():
        expected = reference(images, noise=noise)
        latent = reference.vit(images, noise=noise).last_hidden_state
        loss, pred, mask = model(patchify(images.permute(0, 2, 3, 1), 8), kept.int())
        visible = torch.take_along_dim(patchify(images.permute(0, 2, 3, 1), 8), kept[..., None], dim=1)
        ours = model.forward_encoder(visible, kept.int())
    order = noise.argsort(dim=1)[:, :6].argsort(dim=1)  # theirs stays shuffled
    latent = torch.cat([latent[:, :1], torch.take_along_dim(latent[:, 1:], order[..., None], dim=1)], dim=1)
    assert torch.equal(mask, expected.mask)
    torch.testing.assert_close(ours, latent, atol=1e-4, rtol=0)
    torch.testing.assert_close(pred, expected.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(loss, expected.loss, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_pix_loss": True},
        {"qkv_bias": False},
        {"layer_norm_eps": 1e-2},
    ],
    ids=lambda changes: next(iter(changes), "plain"),
)
def test_agrees_with_transformers(tmp_path: Path, changes: dict[str, object]) -> None:
    reference = randomised(**changes)
    reference.save_pretrained(tmp_path)
    compare(load(tmp_path).build(), reference)


def test_agrees_with_transformers_when_positions_are_learned(tmp_path: Path) -> None:
    reference = randomised()
    with torch.no_grad():
        reference.vit.embeddings.position_embeddings.normal_(std=0.5)
        reference.decoder.decoder_pos_embed.normal_(std=0.5)
    reference.save_pretrained(tmp_path)
    compare(load(tmp_path).build(), reference)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_agrees_with_transformers_in_upstreams_layout(tmp_path: Path, norm_pix_loss: bool) -> None:
    # of the usual widths, since such a file does not tell its heads; and of upstream's epsilon
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "decoder_hidden_size": 128, "decoder_num_attention_heads": 4}
    reference = randomised(**sizes, layer_norm_eps=1e-6, norm_pix_loss=norm_pix_loss)
    torch.save({"model": to_upstream(reference)}, tmp_path / "mae.pth")
    compare(load(tmp_path / "mae.pth", norm_pix_loss=norm_pix_loss).build(), reference)


@pytest.mark.parametrize(("width", "grid"), [(48, 5), (192, 14), (1280, 16)])
def test_sincos_positions_are_those_of_transformers(width: int, grid: int) -> None:
    torch.testing.assert_close(sincos_positions(width, grid), fixed_positions(width, grid), atol=1e-6, rtol=0)


def test_sincos_positions_by_hand() -> None:
    table = sincos_positions(4, 2)[0]
    sin, cos = np.sin(1), np.cos(1)
    # [sin column, cos column, sin row, cos row], after the zeros of cls
    assert table.numpy() == pytest.approx(
        np.array([[0, 0, 0, 0], [0, 1, 0, 1], [sin, cos, 0, 1], [0, 1, sin, cos], [sin, cos, sin, cos]]), abs=1e-6
    )


def test_a_patch_is_row_column_channel_and_patches_are_row_major() -> None:
    image = torch.arange(4 * 6 * 3).reshape(1, 4, 6, 3)
    patches = patchify(image, 2)
    assert patches.shape == (1, 6, 12)
    assert patches[0, 0].tolist() == [0, 1, 2, 3, 4, 5, 18, 19, 20, 21, 22, 23]
    assert patches[0, 1, 0] == 6, "the next patch is to the right"
    assert patches[0, 3, 0] == 36, "the second row of patches begins two rows of pixels down"


def test_unpatchify_undoes_patchify() -> None:
    images = torch.arange(2 * 12 * 12 * 3).reshape(2, 12, 12, 3)
    assert torch.equal(unpatchify(patchify(images, 4), 4), images)


@pytest.mark.parametrize(
    ("name", "published"),
    [  # of the ViTs with their classifier of 1,000 classes, as timm and torchvision list them
        ("mae_tiny", 5_717_416),
        ("mae_small", 22_050_664),
        ("mae_base", 86_567_656),
        ("mae_large", 304_326_632),
        ("mae_huge", 632_045_800),
    ],
)
def test_encoders_have_the_published_numbers_of_weights(name: str, published: int) -> None:
    preset = PRESETS[name]
    with torch.device("meta"):
        model = MaskedAutoencoder(preset.model_copy(update={"decoder_depth": 0}))
    classifier = 1000 * preset.embed_dim + 1000
    assert sum(weight.numel() for weight in model.parameters()) + classifier == published


def test_positions_are_fixed_or_trained_as_the_config_says() -> None:
    sizes = {"image_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2, "decoder_embed_dim": 8, "decoder_depth": 1}
    for positions, trained in (("sincos", False), ("learned", True)):
        model = MaskedAutoencoder(MAEConfig(**sizes, decoder_num_heads=2, positions=positions))
        assert model.pos_embed.requires_grad is trained
        assert model.decoder_pos_embed.requires_grad is trained
        assert model.pos_embed.abs().sum() > 0


def test_a_fresh_model_learns() -> None:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2}
    model = MaskedAutoencoder(MAEConfig(**sizes, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2))
    patches = torch.randn(4, 1, 48).expand(-1, 16, -1)  # images of one repeated patch: what is hidden can be told
    visible_indices = torch.tensor([[0, 3, 5, 10]]).expand(4, -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model(patches, visible_indices)[0].item()
    for _ in range(60):
        loss = model(patches, visible_indices)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 4


def test_a_model_without_a_decoder_has_none_of_its_weights() -> None:
    model = MaskedAutoencoder(MAEConfig(image_size=32, embed_dim=16, depth=1, num_heads=2, decoder_depth=0))
    assert not [name for name in model.state_dict() if name.startswith(("decoder", "mask"))]
    assert model.forward_encoder(torch.zeros(1, 2, 768), torch.tensor([[0, 3]])).shape == (1, 3, 16)
