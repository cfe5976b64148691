"""Tiny models for the tests of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from model.config import MAEConfig
from model.nn.vit import MaskedAutoencoder, sincos_positions

if TYPE_CHECKING:  # importing it takes seconds
    from transformers import ViTMAEForPreTraining


@pytest.fixture(scope="session")
def config() -> MAEConfig:
    """Small, but of usual widths, so that files without a config can be read too."""
    sizes = {"image_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3}
    return MAEConfig(name="bird", **sizes, decoder_embed_dim=128, decoder_depth=1, decoder_num_heads=4)


@pytest.fixture(scope="session")
def drawn_weights(config: MAEConfig) -> dict[str, Tensor]:
    """A state dict of `config` under upstream's names, random but for its fixed positions; no test changes it."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: tensor if "pos_embed" in name else torch.randn(tensor.shape, generator=generator) * 0.1
        for name, tensor in MaskedAutoencoder(config).state_dict().items()
    }


@pytest.fixture
def weights(drawn_weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, for a test that may change it."""
    return {name: tensor.clone() for name, tensor in drawn_weights.items()}


@pytest.fixture
def encoder(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` without the decoder."""
    return {name: tensor for name, tensor in weights.items() if not name.startswith(("decoder", "mask_token"))}


@pytest.fixture(scope="session")
def hugging_face() -> Callable[..., ViTMAEForPreTraining]:
    """A function (folder, **changes to the config) that has transformers make a tiny ViTMAE and save it there."""

    def make(folder: Path, **changes: object) -> ViTMAEForPreTraining:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
        sizes |= {"image_size": 32, "patch_size": 8, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
        sizes |= {"decoder_num_attention_heads": 4, "decoder_intermediate_size": 20}
        torch.manual_seed(0)
        model = ViTMAEForPreTraining(ViTMAEConfig(**sizes | changes)).eval()
        with torch.no_grad():
            model.vit.embeddings.position_embeddings.copy_(sincos_positions(24, 4))
            model.decoder.decoder_pos_embed.copy_(sincos_positions(16, 4))
        model.save_pretrained(folder)
        return model

    return make
