"""Foreign checkpoints of the same model: the names and sizes of upstream, Hugging Face's ViTMAE and timm.

Functions take the path of the weights for the messages of their errors.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator
from torch import Tensor

from model.checkpoints.errors import WeightsError
from model.config import MAEConfig, Positive
from model.nn.vit import sincos_positions

POSITION_TABLES = ("pos_embed", "decoder_pos_embed")
ENCODER_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # by width: ViT-Tiny to ViT-Huge
DECODER_HEADS = {128: 4, 256: 8, 512: 16}

logger = logging.getLogger(__name__)


def infer_config(path: Path, tensors: Mapping[str, Tensor], preset: MAEConfig | None, name: str) -> MAEConfig:
    """Infers sizes from the shapes of tensors under upstream's names, for files that come without a config.

    Args:
        path: the file or folder of the weights.
        tensors: a state dict of facebookresearch/mae or of timm's encoder.
        preset: the preset that the model should be. It gives the number of heads, which the width otherwise suggests.
        name: name of the model.

    Raises:
        WeightsError: this is not a masked autoencoder, not the preset's, or of an unusual width without a preset.
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
    }
    if "decoder_embed.weight" in tensors:
        decoder_width = _shape(path, tensors, "decoder_embed.weight", 2)[0]
        sizes |= {
            "decoder_embed_dim": decoder_width,
            "decoder_depth": _depth(tensors, "decoder_blocks"),
            "decoder_mlp_ratio": _shape(path, tensors, "decoder_blocks.0.mlp.fc1.weight", 2)[0] / decoder_width,
        }
    if preset is not None:
        _require_equal(path, sizes, preset)
        heads = {"num_heads": preset.num_heads, "decoder_num_heads": preset.decoder_num_heads}
    else:
        heads = _guess_heads(path, sizes)
    positions = kind_of_positions(tensors)
    return MAEConfig(name=name, image_size=grid * patch, positions=positions, **sizes, **heads)


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
        if not torch.allclose(table, sincos_positions(width, grid), rtol=0, atol=2**-8):
            return "learned"
    return "sincos"


def to_upstream_names(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a ViTMAE's state dict to upstream's names, and joins its queries, keys and values.

    Files vary with the version of transformers that wrote them. Each spelling is understood, with and without the
    prefix `vit.`: published ones (`vit.encoder.layer.0.attention.attention.query`, `decoder.decoder_layers.0.…`), those
    of transformers 5 in memory (`vit.layers.0.attention.q_proj`), and those that its `save_pretrained` writes
    (`decoder.decoder_encoder.layer.0.…`). Names that fit none are kept, and the caller refuses them.

    Raises:
        WeightsError: two names mean the same tensor.
    """
    renamed: dict[str, Tensor] = {}
    spellings: set[str] = set()
    for name, tensor in tensors.items():
        new, spelling = _upstream_name(name)
        if new in renamed:
            raise WeightsError(f"{path} holds {new} twice, the second time as {name}")
        renamed[new] = tensor
        spellings |= {spelling} if spelling else set()
    logger.info("spellings of Hugging Face names: %s", ", ".join(sorted(spellings)))
    for query in [name for name in renamed if ".attn.q." in name]:
        parts = [query.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in renamed for part in parts):
            joined = torch.cat([renamed.pop(part) for part in parts])
            renamed[query.replace(".attn.q.", ".attn.qkv.")] = joined
    return renamed


def _one_side(value: object) -> object:
    """Reduces two equal sides to one."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1] else value


Side = Annotated[Positive, BeforeValidator(_one_side)]


class HuggingFaceConfig(BaseModel):
    """config.json of a ViTMAE; omitted fields have the defaults of transformers' `ViTMAEConfig`."""

    hidden_size: Positive = 768
    num_hidden_layers: Positive = 12
    num_attention_heads: Positive = 12
    intermediate_size: Positive = 3072
    hidden_act: Literal["gelu"] = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: Side = 224
    patch_size: Side = 16
    num_channels: Literal[3] = 3
    qkv_bias: bool = True
    decoder_num_attention_heads: Positive = 16
    decoder_hidden_size: Positive = 512
    decoder_num_hidden_layers: Positive = 8
    decoder_intermediate_size: Positive = 2048
    norm_pix_loss: bool = False

    def to_config(self, tensors: Mapping[str, Tensor], name: str) -> MAEConfig:
        """Translates the config to our names; there is no decoder if `tensors`, under upstream's names, has none."""
        decoder: dict[str, Any] = {"decoder_depth": 0}
        if any(key.startswith("decoder") for key in tensors):
            decoder = {
                "decoder_embed_dim": self.decoder_hidden_size,
                "decoder_depth": self.decoder_num_hidden_layers,
                "decoder_num_heads": self.decoder_num_attention_heads,
                "decoder_mlp_ratio": self.decoder_intermediate_size / self.decoder_hidden_size,
            }
        return MAEConfig(
            name=name,
            image_size=self.image_size,
            patch_size=self.patch_size,
            embed_dim=self.hidden_size,
            depth=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            mlp_ratio=self.intermediate_size / self.hidden_size,
            qkv_bias=self.qkv_bias,
            layer_norm_eps=self.layer_norm_eps,
            positions=kind_of_positions(tensors),
            norm_pix_loss=self.norm_pix_loss,
            **decoder,
        )


_PARTS = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_embed": "decoder_embed",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.decoder_norm": "decoder_norm",
    "decoder.decoder_pred": "decoder_pred",
}
_LAYER_PARTS = {
    "layernorm_before": "norm1",
    "attention.attention.query": "attn.q",
    "attention.q_proj": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.k_proj": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.v_proj": "attn.v",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "mlp.fc1": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc2": "mlp.fc2",
}
_LAYER = re.compile(r"(encoder\.layer|layers|decoder\.decoder_layers|decoder\.decoder_encoder\.layer)\.(\d+)\.(.+)")


def _upstream_name(name: str) -> tuple[str, str | None]:
    """Upstream's name for one of Hugging Face's, and the spelling of its layer; unknown names stay as they are."""
    whole, dot, kind = name.removeprefix("vit.").rpartition(".")
    if kind not in ("weight", "bias"):
        whole, dot, kind = name.removeprefix("vit."), "", ""
    if whole in _PARTS:
        return _PARTS[whole] + dot + kind, None
    layer = _LAYER.fullmatch(whole)
    if layer is None or layer[3] not in _LAYER_PARTS:
        return name, None
    blocks = "decoder_blocks" if layer[1].startswith("decoder.") else "blocks"
    return f"{blocks}.{layer[2]}.{_LAYER_PARTS[layer[3]]}{dot}{kind}", name[: name.index(layer[1])] + layer[1]


def _require_autoencoder(path: Path, tensors: Mapping[str, Tensor]) -> None:
    if classifier := [name for name in tensors if name.startswith(("head.", "fc_norm."))]:
        raise WeightsError(
            f"{path} is a fine-tuned classifier (it holds {classifier[0]}): expected a pre-trained autoencoder"
        )
    if "patch_embed.proj.weight" not in tensors:
        content = f"{len(tensors)} tensors such as {next(iter(tensors))}" if tensors else "no tensors"
        hint = "; pass its folder, config.json included" if any("patch_embeddings" in name for name in tensors) else ""
        raise WeightsError(
            f"{path} holds {content}: expected those of a masked autoencoder, patch_embed.proj.weight first{hint}"
        )


def _shape(path: Path, tensors: Mapping[str, Tensor], name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors:
        raise WeightsError(f"{path} lacks {name}, which every masked autoencoder has")
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise WeightsError(f"{path} holds {name} as {list(shape)}: expected {dimensions} dimensions")
    return shape


def _depth(tensors: Mapping[str, Tensor], blocks: str) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith(f"{blocks}.")})


def _guess_heads(path: Path, sizes: Mapping[str, Any]) -> dict[str, int]:
    heads = {"num_heads": ENCODER_HEADS.get(sizes["embed_dim"])}
    if sizes["decoder_depth"]:
        heads["decoder_num_heads"] = DECODER_HEADS.get(sizes["decoder_embed_dim"])
    if None in heads.values():
        raise WeightsError(
            f"{path} is of an unusual width, and tensors do not tell the number of heads: say which with MODEL"
        )
    return {name: count for name, count in heads.items() if count}


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
