"""Folders of timm's VisionTransformer, as `timm.create_model("local-dir:FOLDER")` opens them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.checkpoints.attention_heads import TIMM_WIDTHS
from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.classifiers import POOLS
from model.checkpoints.heads import Head
from model.config import MAEConfig, Preprocessing
from model.export.contents import Contents, ExportError, write_weights
from model.nn.base import DECODER_PREFIXES

EPS = 1e-6
"""Of timm's layer normalisation, which no argument changes."""


def export_to_timm(checkpoint: Checkpoint, folder: Path, half: bool = False) -> Contents:
    """Writes config.json and model.safetensors: the encoder, and its head if there is one.

    Args:
        checkpoint: the model.
        folder: an empty folder.
        half: store 16 bits per number.

    Raises:
        ExportError: timm has no such network.
    """
    config, head = checkpoint.config, checkpoint.heads.head
    if config.family != "vit":
        raise ExportError(f"{config.name} is a residual network that timm does not have: --to onnx can hold it")
    tensors = {name: x for name, x in checkpoint.tensors.items() if not name.startswith(DECODER_PREFIXES)}
    notes = []
    if config.has_decoder:
        notes.append("The decoder is left out, since timm has encoders alone.")
    if config.layer_norm_eps != EPS:
        notes.append(f"timm adds {EPS} to variances where this model adds {config.layer_norm_eps}.")
    if head is not None:
        tensors |= {"head.weight": torch.from_numpy(head.weight), "head.bias": torch.from_numpy(head.bias)}
    write_weights(folder, tensors, half)
    settings = _config(config, checkpoint.preprocessing, head, checkpoint.license)
    (folder / "config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    answer = "probabilities = model(images).softmax(dim=-1)  # [B, C], classes as label_names in config.json"
    if head is None:
        answer = "vectors = model(images)  # [B, D]: the mean of the patches' tokens"
        if config.has_cls:
            answer += '; create_model(…, global_pool="token") gives cls'
    return Contents(
        title=f"a {settings['architecture']} of timm, with the arguments in config.json",
        usage=_USAGE.format(answer=answer),
        library="timm",
        task="image-feature-extraction" if head is None else "image-classification",
        heads=replace(checkpoint.heads, head=None),
        notes=tuple(notes),
    )


def _config(config: MAEConfig, preprocessing: Preprocessing, head: Head | None, licence: str | None) -> dict[str, Any]:
    size = next((name for name, width in TIMM_WIDTHS.items() if width == config.embed_dim), "base")
    pool = next(theirs for theirs, ours in POOLS.items() if ours == ("mean" if head is None else head.config.pool))
    count = 0 if head is None else len(head.config.classes)
    side = config.image_size
    settings = {
        "architecture": f"vit_{size}_patch{14 if size == 'huge' else 16}_224",
        "num_classes": count,
        "num_features": config.embed_dim,
        "global_pool": pool,
        "model_args": {
            "img_size": side,
            "patch_size": config.patch_size,
            "embed_dim": config.embed_dim,
            "depth": config.depth,
            "num_heads": config.num_heads,
            "mlp_ratio": _mlp_ratio(config),
            "qkv_bias": config.qkv_bias,
            "global_pool": pool,
            "fc_norm": config.final_norm == "pooled",
        },
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "interpolation": preprocessing.filter,
            "crop_pct": preprocessing.crop_fraction if preprocessing.resize == "short" else 1.0,
            "crop_mode": "center" if preprocessing.resize == "short" else "squash",
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "num_classes": count,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": licence,
        },
    }
    return settings if head is None else settings | {"label_names": head.config.classes}


def _mlp_ratio(config: MAEConfig) -> float:
    """The ratio that timm's `int(width * ratio)` makes the right number of: rounding may have taken it below."""
    hidden, ratio = round(config.embed_dim * config.mlp_ratio), config.mlp_ratio
    if int(config.embed_dim * ratio) == hidden:
        return ratio
    ratio = hidden / config.embed_dim
    return ratio if int(config.embed_dim * ratio) == hidden else math.nextafter(ratio, math.inf)


_USAGE = """\
import timm
import torch
from PIL import Image, ImageOps

torch.set_grad_enabled(False)
model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
image = ImageOps.exif_transpose(Image.open("photograph.jpg")).convert("RGB")
images = torch.stack([transform(image)])
{answer}
"""
