"""Folders of Hugging Face's ViTMAE and ViT: config.json and the names of every generation of transformers."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator
from torch import Tensor

from model.checkpoints import classifiers
from model.checkpoints.errors import WeightsError, summarise
from model.checkpoints.foreign import kind_of_positions
from model.config import MAEConfig, Positive

MODEL_TYPES = ("vit_mae", "vit")
logger = logging.getLogger(__name__)


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
    """config.json of a ViTMAE or ViT; omitted fields have the defaults of transformers' `ViTMAEConfig`, `ViTConfig`."""

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
    id2label: dict[str, str] | None = None
    problem_type: str | None = None

    def labels(self, path: Path) -> list[str] | None:
        """The names of the classes in their order; `path` is the folder, for messages.

        Raises:
            WeightsError: the head does not choose one of its classes.
        """
        if self.problem_type not in (None, "single_label_classification"):
            raise WeightsError(
                f"{path} has the problem_type {self.problem_type!r} in its config.json: "
                "expected single_label_classification"
            )
        if self.id2label is not None and len(self.id2label) == 1:
            raise WeightsError(
                f"{path} has a head of one label, a regression to transformers: expected several labels; "
                "to embed with it, save its encoder alone, by model.vit.save_pretrained"
            )
        return classifiers.labels_of(self.id2label)

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


def drop_pooler(tensors: dict[str, Tensor]) -> list[str]:
    """Drops the layer that a ViTModel has after its cls token, from tensors under upstream's names; a note tells it."""
    pooler = [name for name in tensors if name.removeprefix("vit.").startswith("pooler.")]
    for name in pooler:
        del tensors[name]
    return [f"left out, as vectors are taken before the pooler: {summarise(pooler)}"] if pooler else []


PARTS = {  # Hugging Face's published names of an encoder's and a decoder's parts, and upstream's
    "classifier": "head",
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
LAYER_PARTS = {  # of a layer's parts: of each one the published name comes first
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
    if whole in PARTS:
        return PARTS[whole] + dot + kind, None
    layer = _LAYER.fullmatch(whole)
    if layer is None or layer[3] not in LAYER_PARTS:
        return name, None
    blocks = "decoder_blocks" if layer[1].startswith("decoder.") else "blocks"
    return f"{blocks}.{layer[2]}.{LAYER_PARTS[layer[3]]}{dot}{kind}", name[: name.index(layer[1])] + layer[1]
