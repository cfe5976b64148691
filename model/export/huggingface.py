"""Folders of Hugging Face's ViTMAE and ViT, with the names that published models have.

These names are those of the transformers' releases before 5, and later ones read them too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoints.checkpoint import Checkpoint
from model.checkpoints.heads import Head
from model.checkpoints.huggingface import LAYER_PARTS, PARTS
from model.checkpoints.preprocessors import PIL_FILTERS
from model.config import MAEConfig, Preprocessing
from model.export.contents import Contents, ExportError, write_weights
from model.nn.base import DECODER_PREFIXES

PUBLISHED_PARTS = {ours: theirs for theirs, ours in PARTS.items()}
PUBLISHED_LAYER_PARTS = {ours: theirs for theirs, ours in reversed(LAYER_PARTS.items())}


def export_to_huggingface(checkpoint: Checkpoint, folder: Path, half: bool = False) -> Contents:
    """Writes config.json, model.safetensors and preprocessor_config.json.

    A model whose head reads the cls token becomes a ViTForImageClassification, one with a decoder a
    ViTMAEForPreTraining, and an encoder alone a ViTMAEModel.

    Args:
        checkpoint: the model.
        folder: an empty folder.
        half: store 16 bits per number.

    Raises:
        ExportError: transformers has no such network.
    """
    config = checkpoint.config
    if config.family != "vit":
        raise ExportError(f"{config.name} is a residual network that transformers does not have: --to onnx can hold it")
    if config.final_norm == "pooled":
        raise ExportError(
            f"{config.name} norms the mean of its tokens (fc_norm), which no ViT of transformers does: "
            "--to timm and --to onnx can hold it"
        )
    stored, head = checkpoint.heads, checkpoint.heads.head
    notes = []
    if head is not None and (head.config.pool != "cls" or len(head.config.classes) == 1):
        why = "that read the mean" if head.config.pool == "mean" else "of a single class"
        notes.append(f"transformers has no heads {why}, so the head is in heads.safetensors.")
        head = None
    tensors = dict(checkpoint.tensors)
    if head is not None:
        if config.has_decoder:
            tensors = {name: x for name, x in tensors.items() if not name.startswith(DECODER_PREFIXES)}
            notes.append("The decoder is left out, since no class of transformers has both it and a head (--no-head).")
        tensors |= {"head.weight": torch.from_numpy(head.weight), "head.bias": torch.from_numpy(head.bias)}
    if checkpoint.preprocessing.resize == "short":
        notes.append(
            "Where the square lies half a pixel off the centre, transformers rounds its place down and mae-serve to an "
            "even number, so pixels and vectors differ a little."
        )
    settings = _config(config, half) | (_autoencoder(config) if head is None else _classifier(head))
    architecture = settings["architectures"][0]
    prefix = "" if architecture == "ViTMAEModel" else "vit."
    write_weights(folder, _publish_names(tensors, prefix), half)
    _write_json(folder / "config.json", settings)
    _write_json(folder / "preprocessor_config.json", _preprocessor(checkpoint.preprocessing, config.image_size))
    return Contents(
        title=f"a {architecture} of Hugging Face's transformers",
        usage=_usage(architecture),
        library="transformers",
        task="image-feature-extraction" if head is None else "image-classification",
        heads=stored if head is None else replace(stored, head=None),
        notes=tuple(notes),
    )


def _config(config: MAEConfig, half: bool) -> dict[str, Any]:
    """The part of config.json that ViTMAE and ViT share."""
    return {
        "dtype": "float16" if half else "float32",
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": round(config.embed_dim * config.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": config.layer_norm_eps,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "qkv_bias": config.qkv_bias,
    }


def _autoencoder(config: MAEConfig) -> dict[str, Any]:
    if not config.has_decoder:
        return {"architectures": ["ViTMAEModel"], "model_type": "vit_mae", "mask_ratio": 0.0}
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "mask_ratio": 0.75,
        "decoder_hidden_size": config.decoder_embed_dim,
        "decoder_num_hidden_layers": config.decoder_depth,
        "decoder_num_attention_heads": config.decoder_num_heads,
        "decoder_intermediate_size": round(config.decoder_embed_dim * config.decoder_mlp_ratio),
        "norm_pix_loss": config.norm_pix_loss,
    }


def _classifier(head: Head) -> dict[str, Any]:
    classes = head.config.classes
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "problem_type": "single_label_classification",
        "id2label": {str(number): label for number, label in enumerate(classes)},
        "label2id": {label: number for number, label in enumerate(classes)},
    }


def _preprocessor(preprocessing: Preprocessing, side: int) -> dict[str, Any]:
    """preprocessor_config.json; of the two classes each has the steps in every release of transformers."""
    square = {"height": side, "width": side}
    steps: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": square}
    if preprocessing.resize == "short":
        short = {"shortest_edge": preprocessing.resized_short_side(side)}
        steps = {"image_processor_type": "CLIPImageProcessor", "size": short}
        steps |= {"do_center_crop": True, "crop_size": square}
    return steps | {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": PIL_FILTERS.index(preprocessing.filter),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocessing.mean,
        "image_std": preprocessing.std,
    }


def _publish_names(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors under upstream's names -> under published ones; those of the encoder begin with `prefix`."""
    published: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." not in name:
            published[_publish_name(name, prefix)] = tensor
            continue
        for part, split in zip("qkv", tensor.chunk(3), strict=True):
            published[_publish_name(name.replace(".attn.qkv.", f".attn.{part}."), prefix)] = split
    return published


def _publish_name(name: str, prefix: str) -> str:
    whole, dot, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        whole, dot, kind = name, "", ""
    if whole in PUBLISHED_PARTS:
        part = PUBLISHED_PARTS[whole]
        belongs_to_encoder = not part.startswith("decoder.") and part != "classifier"
        return (prefix if belongs_to_encoder else "") + part + dot + kind
    blocks, number, part = whole.split(".", 2)
    layers = f"{prefix}encoder.layer" if blocks == "blocks" else "decoder.decoder_layers"
    return f"{layers}.{number}.{PUBLISHED_LAYER_PARTS[part]}{dot}{kind}"


def _write_json(path: Path, settings: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


_USAGE_START = """\
import torch
from PIL import Image, ImageOps
from transformers import {classes}

torch.set_grad_enabled(False)
images = [ImageOps.exif_transpose(Image.open("photograph.jpg")).convert("RGB")]
inputs = AutoImageProcessor.from_pretrained(".")(images, return_tensors="pt")
"""
_USAGE_OF_ENCODER = """\
encoder = ViTMAEModel.from_pretrained(".", mask_ratio=0.0).float().eval()  # otherwise it sees a random part
tokens = encoder(**inputs).last_hidden_state  # [B, 1 + N, D]: cls, then the patches in a random order
cls, mean = tokens[:, 0], tokens[:, 1:].mean(dim=1)
"""
_USAGE = {
    "ViTMAEModel": _USAGE_OF_ENCODER,
    "ViTMAEForPreTraining": _USAGE_OF_ENCODER
    + """
autoencoder = ViTMAEForPreTraining.from_pretrained(".").float().eval()
output = autoencoder(**inputs)  # logits [B, N, P], mask [B, N], loss
reconstruction = autoencoder.unpatchify(output.logits)  # [B, 3, H, W], standardised
""",
    "ViTForImageClassification": """\
classifier = ViTForImageClassification.from_pretrained(".").float().eval()
probabilities = classifier(**inputs).logits.softmax(dim=-1)  # [B, C], classes as in config.id2label
""",
}


def _usage(architecture: str) -> str:
    classes = sorted({"AutoImageProcessor", architecture} | ({"ViTMAEModel"} if "MAE" in architecture else set()))
    return _USAGE_START.format(classes=", ".join(classes)) + _USAGE[architecture]
