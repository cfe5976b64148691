"""Checkpoints that come without a config of ours: sizes from the shapes of tensors under upstream's names.

Functions take the path of the weights for the messages of their errors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from model.checkpoints.attention_heads import HeadCounts, complete_heads, heads_of_arguments
from model.checkpoints.errors import WeightsError
from model.config import MAEConfig
from model.nn.vit import sincos_positions

POSITION_TABLES = ("pos_embed", "decoder_pos_embed")
SERVED = "mae-serve serves ViTs and residual networks of its own"
OTHER_NETWORKS = {
    re.compile(r"multi_scale_fusion_heads\.|blocks\.\d+\.proj\."): "a Hiera",
    re.compile(r"downsample_layers\.|stages\.\d+\.(\w+\.)*grn\."): "a ConvNeXt V2",
}
"""Masked autoencoders of other networks, by names that only they have."""


def infer_config(
    path: Path,
    tensors: Mapping[str, Tensor],
    preset: MAEConfig | None,
    name: str,
    heads: HeadCounts = HeadCounts(),  # noqa: B008 - immutable
    arguments: Mapping[str, Any] = {},
) -> tuple[MAEConfig, list[str]]:
    """Infers sizes from the shapes of tensors under upstream's names, for files that come without a config.

    Args:
        path: the file or folder of the weights.
        tensors: a state dict of facebookresearch/mae or of timm's encoder.
        preset: the preset that the model should be; it gives the number of heads.
        name: name of the model.
        heads: the numbers of heads that the operator states, which come before all others.
        arguments: those of the training script, or of timm's model.

    Returns:
        The config, and sentences about what was guessed.

    Raises:
        WeightsError: this is not a masked autoencoder, not the preset's, or of an unusual width without HEADS.
    """
    _require_autoencoder(path, tensors)
    width, _, _, patch = _shape(path, tensors, "patch_embed.proj.weight", 4)
    tokens = _shape(path, tensors, "pos_embed", 3)[1]
    grid = math.isqrt(max(tokens - 1, 0))
    if grid == 0 or grid**2 + 1 != tokens:
        raise WeightsError(f"{path} has {tokens} positions: expected one for cls and those of a square of patches")
    sizes: dict[str, Any] = {
        "family": "vit",
        "patch_size": patch,
        "embed_dim": width,
        "depth": _depth(tensors, "blocks"),
        "mlp_ratio": _shape(path, tensors, "blocks.0.mlp.fc1.weight", 2)[0] / width,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "decoder_depth": 0,
        "final_norm": "pooled" if "fc_norm.weight" in tensors else "tokens",
    }
    if "decoder_embed.weight" in tensors:
        inner = _shape(path, tensors, "decoder_embed.weight", 2)[0]
        sizes |= {
            "decoder_embed_dim": inner,
            "decoder_depth": _depth(tensors, "decoder_blocks"),
            "decoder_mlp_ratio": _shape(path, tensors, "decoder_blocks.0.mlp.fc1.weight", 2)[0] / inner,
        }
    decoder_width: int | None = sizes.get("decoder_embed_dim")
    stated = heads_of_arguments(arguments, width, decoder_width)
    if preset is not None:
        _require_equal(path, sizes, preset)
        stated = HeadCounts(preset.num_heads, preset.decoder_num_heads)
    counts, notes = complete_heads(path, heads.or_else(stated), width, decoder_width)
    positions = kind_of_positions(tensors)
    return MAEConfig(name=name, image_size=grid * patch, positions=positions, **sizes, **counts), notes


def require_agreement(path: Path, config: MAEConfig, preset: MAEConfig) -> None:
    """Raises WeightsError, naming the differences, unless the model is the preset, perhaps without its decoder."""
    _require_equal(path, config.model_dump(), preset)


def kind_of_positions(tensors: Mapping[str, Tensor]) -> Literal["sincos", "learned"]:
    """Tells whether the stored position tables are the fixed sine-cosine ones or learned."""
    for table in (tensors[name] for name in POSITION_TABLES if name in tensors):
        width, grid = table.shape[-1], math.isqrt(max(table.shape[1] - 1, 0))
        # bfloat16, the coarsest that weights come in, is off by 2**-9 near 1; learned tables differ by far more
        if width % 4 or table.shape != (1, 1 + grid**2, width):
            return "learned"
        if not table.allclose(sincos_positions(width, grid), rtol=0, atol=2**-8):
            return "learned"
    return "sincos"


def require_vit(path: Path, kind: str) -> None:
    """Raises WeightsError if an architecture of timm's or a model_type of Hugging Face's is no ViT."""
    for beginning, network in (("hiera", "a Hiera"), ("convnextv2", "a ConvNeXt V2")):
        if kind.lower().startswith(beginning):
            raise WeightsError(f"{path} is {network} ({kind}): {SERVED}")


def _require_autoencoder(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for pattern, network in OTHER_NETWORKS.items():
        if name := next(filter(pattern.search, tensors), None):
            raise WeightsError(f"{path} is {network} (it holds {name}): {SERVED}")
    if "patch_embed.proj.weight" not in tensors:
        content = f"{len(tensors)} tensors such as {next(iter(tensors))}" if tensors else "no tensors"
        hint = "; pass its folder, config.json included" if any("patch_embeddings" in name for name in tensors) else ""
        raise WeightsError(
            f"{path} holds {content}: expected those of a masked autoencoder, patch_embed.proj.weight first{hint}"
        )
    shape = tuple(tensors["patch_embed.proj.weight"].shape)
    if len(shape) == 5:
        raise WeightsError(f"{path} takes videos or image series: mae-serve serves models of single images")
    if len(shape) == 4 and shape[1] != 3:
        channels = f"{shape[1]} channel{'s' if shape[1] != 1 else ''}"
        raise WeightsError(f"{path} takes images of {channels}: mae-serve serves models of 3 channels, RGB")


def _shape(path: Path, tensors: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise WeightsError(f"{path} lacks {name}, which every masked autoencoder has")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise WeightsError(f"{path} holds {name} as {list(shape)}: expected {dimensions} dimensions")
    return shape


def _depth(tensors: Mapping[str, Tensor], blocks: str) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith(f"{blocks}.")})


def _require_equal(path: Path, sizes: Mapping[str, Any], preset: MAEConfig) -> None:
    compared = {"family", "stages", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias"}
    if sizes["decoder_depth"]:
        compared |= {"decoder_embed_dim", "decoder_depth", "decoder_num_heads", "decoder_mlp_ratio"}
    expected = preset.model_dump()
    differences = [
        f"{key} is {sizes[key]}, expected {expected[key]}"
        for key in sorted(compared & sizes.keys())
        if sizes[key] != expected[key]
    ]
    if differences:
        raise WeightsError(f"{path} is not {preset.name}: {'; '.join(differences)}")
