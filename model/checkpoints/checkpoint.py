"""Checkpoints: what they hold, whoever wrote them, and our own file format.

The kind of a file is told by its content. Nothing but tensors and the plain `argparse.Namespace` of upstream's training
script is ever unpickled.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from model.checkpoints import foreign, preprocessors
from model.checkpoints.errors import WeightsError, naming_path
from model.checkpoints.heads import Heads, is_head_tensor
from model.checkpoints.locate import card_license, readable_name, weight_files
from model.checkpoints.native import METADATA_KEY, Metadata, is_safetensors, read_metadata
from model.config import PRESETS, MAEConfig, Preprocessing
from model.nn import build_model
from model.nn.base import Autoencoder
from model.nn.vit import sincos_positions

Layout = Literal["mae-serve", "facebookresearch", "huggingface", "timm"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A model at rest.

    Attributes:
        config: sizes, name, and what the decoder predicts.
        preprocessing: how images become the model's squares.
        layout: who wrote the file.
        tensors: float32, finite, under upstream's key names, exactly those that `config` asks for.
        license: of the weights, if the file or its model card says.
        extras: classification head and whitening, which only our own format holds.
    """

    config: MAEConfig
    preprocessing: Preprocessing
    layout: Layout
    tensors: dict[str, Tensor]
    license: str | None = None
    heads: Heads = field(default_factory=Heads)

    def build(self, image_size: int | None = None) -> Autoencoder:
        """The model in eval mode, without gradients, sharing this checkpoint's memory where it can.

        Args:
            image_size: side of the square to serve, if not the one trained on: fixed sine-cosine positions are computed
                for the new grid, learned ones interpolated (bicubic), as fine-tuning at another size does; a
                convolutional model has none.

        Raises:
            ValueError: `image_size` is not a multiple of the patch size.
        """
        config, tensors = self.config, self.tensors
        if image_size is not None and image_size != config.image_size:
            if image_size <= 0 or image_size % config.patch_size:
                raise ValueError(f"image_size {image_size} is not a multiple of the patch size, {config.patch_size}")
            config = config.model_copy(update={"image_size": image_size})
            tables = {name: _regrid(tensors[name], config) for name in foreign.POSITION_TABLES if name in tensors}
            tensors = tensors | tables
        with torch.device("meta"):  # every weight is about to be assigned: initialising them would be wasted
            model = build_model(config)
        model.load_state_dict(tensors, assign=True)
        return model.requires_grad_(False).eval()


def load(path: Path, model: str | None = None, norm_pix_loss: bool | None = None) -> Checkpoint:
    """Reads any checkpoint of a masked autoencoder, with a decoder or without.

    Known are our own safetensors; facebookresearch/mae `.pth`, released or written in training; folders of Hugging
    Face's ViTMAE, with the key names of every generation of transformers; and timm's encoders, as folder or bare file.

    Args:
        path: a file or a folder.
        model: a preset that the sizes must agree with. It gives the heads, which tensors do not tell, where the file
            does not; otherwise they are guessed from the usual widths.
        norm_pix_loss: whether the decoder predicts normalised pixels; None to believe the file (no, if it is silent).

    Raises:
        WeightsError: the file is missing, foreign or damaged, or is not what `model` says.
    """
    preset = _preset(model)
    with naming_path(path):
        checkpoint = _load_folder(path, preset) if path.is_dir() else _load_file(path, preset)
        if preset is not None:
            foreign.require_agreement(checkpoint.config, preset)
        _require_exact(checkpoint.tensors, checkpoint.config)
    config = checkpoint.config
    if norm_pix_loss is not None:
        config = config.model_copy(update={"norm_pix_loss": norm_pix_loss})
    logger.info("%s: layout %s, decoder %s", path, checkpoint.layout, "present" if config.has_decoder else "absent")
    return replace(checkpoint, config=config)


def save(path: Path, checkpoint: Checkpoint, half: bool = False) -> None:
    """Writes our own format, safetensors with a `Metadata` inside, at once or not at all.

    Args:
        path: the file to write or replace; its folder exists.
        checkpoint: what to write.
        half: store float16, at half the size; loading gives float32 again.

    Raises:
        WeightsError: a weight is too large for float16.
    """
    dtype = torch.float16 if half else torch.float32
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in checkpoint.tensors.items()}
    _require_finite(tensors)
    tensors |= {name: torch.from_numpy(array) for name, array in checkpoint.heads.arrays().items()}
    metadata = Metadata(
        config=checkpoint.config,
        preprocessing=checkpoint.preprocessing,
        license=checkpoint.license,
        head=checkpoint.heads.head and checkpoint.heads.head.facts,
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # not save_file, which leaves the file unreadable to everyone else
        temporary.write_bytes(safetensors.torch.save(tensors, {METADATA_KEY: metadata.model_dump_json()}))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _load_file(path: Path, preset: MAEConfig | None) -> Checkpoint:
    if metadata := read_metadata(path):
        everything = _float32(load_file(path))
        heads = Heads.of({name: x.numpy() for name, x in everything.items() if is_head_tensor(name)}, metadata)
        tensors = {name: x for name, x in everything.items() if not is_head_tensor(name)}
        if metadata.config.positions == "sincos" and foreign.kind_of_positions(tensors) != "sincos":
            raise WeightsError("declares sine-cosine positions but holds other ones")
        return Checkpoint(metadata.config, metadata.preprocessing, "mae-serve", tensors, metadata.license, heads)
    tensors, arguments = (_float32(load_file(path)), {}) if is_safetensors(path) else _read_pickle(path)
    config = foreign.infer_config(tensors, preset, readable_name(path))
    config = config.model_copy(update={"norm_pix_loss": bool(arguments.get("norm_pix_loss", False))})
    layout: Layout = "timm" if is_safetensors(path) and not config.has_decoder else "facebookresearch"
    return Checkpoint(config, Preprocessing(), layout, tensors)


def _load_folder(folder: Path, preset: MAEConfig | None) -> Checkpoint:
    settings = _read_json(folder / "config.json")
    kind = settings.get("model_type")
    if kind != "vit_mae" and "architecture" not in settings:
        raise WeightsError(f"has the model_type {kind!r} in its config.json: expected vit_mae, or a config of timm's")
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tensors |= _float32(load_file(path)) if is_safetensors(path) else _read_pickle(path)[0]
    name = readable_name(folder)
    if kind != "vit_mae":
        timm = preprocessors.TimmConfig.model_validate(settings).pretrained_cfg
        config = foreign.infer_config(tensors, preset, name)
        preprocessing = timm.to_preprocessing(config.image_size)
        return Checkpoint(config, preprocessing, "timm", tensors, timm.license or card_license(folder))
    tensors = foreign.upstream_names(tensors)
    config = foreign.HuggingFaceConfig.model_validate(settings).to_config(tensors, name)
    processor = folder / "preprocessor_config.json"
    if processor.is_file():
        preprocessor = preprocessors.HuggingFacePreprocessor.model_validate(_read_json(processor))
        preprocessing = preprocessor.to_preprocessing(config.image_size)
    else:
        # transformers' own default standardises with 0.5, which no published masked autoencoder was trained with
        logger.warning("%s has no preprocessor_config.json: images are prepared as upstream's MAE does", folder)
        preprocessing = Preprocessing()
    return Checkpoint(config, preprocessing, "huggingface", tensors, card_license(folder))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise WeightsError(f"holds no {path.name}: expected a folder of Hugging Face's ViTMAE or of timm")
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:
        raise WeightsError(f"has a {path.name} that is not JSON") from error
    if not isinstance(settings, dict):
        raise WeightsError(f"has a {path.name} that is not a JSON object")
    return settings


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of a torch file, and the arguments that the training script kept beside it."""
    with path.open("rb") as file:
        magic = file.read(2)
    if magic not in (b"PK", b"\x80\x02"):  # torch's zip archives, and its pickles before version 1.6
        raise WeightsError("is neither a safetensors file nor a PyTorch checkpoint")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes from a stranger can make an unpickler raise anything
        raise WeightsError("is refused by PyTorch's safe loader: it is damaged, or holds more than tensors") from error
    state = content.get("model", content) if isinstance(content, dict) else None
    arguments = content.get("args") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError("holds no state dict: expected names and tensors, at the top or under 'model'")
    return _float32(state), vars(arguments) if isinstance(arguments, argparse.Namespace) else {}


def _float32(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise WeightsError(f"holds {name} as {tensor.dtype}: expected floating-point weights")
    return {str(name): tensor.detach().float() for name, tensor in tensors.items()}


def _require_exact(tensors: dict[str, Tensor], config: MAEConfig) -> None:
    """Raises unless the names and shapes are those of the model, and every number is finite."""
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build_model(config).state_dict().items()}
    if missing := expected.keys() - tensors.keys():
        raise WeightsError(f"lacks {_few(missing)}, which a masked autoencoder of its size has")
    if unexpected := tensors.keys() - expected.keys():
        raise WeightsError(f"holds {_few(unexpected)}, which no masked autoencoder of its size has")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise WeightsError(f"holds {name} as {list(tensors[name].shape)}: expected {list(shape)}")
    _require_finite(tensors)


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise WeightsError(f"holds infinities or NaN in {_few(broken)}: expected finite weights")


def _few(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


def _preset(model: str | None) -> MAEConfig | None:
    if model is not None and model not in PRESETS:
        raise WeightsError(f"there is no preset {model!r}: the presets are {', '.join(PRESETS)}")
    return None if model is None else PRESETS[model]


def _regrid(table: Tensor, config: MAEConfig) -> Tensor:
    """Positions [1, 1 + N, D] for the config's grid; the row of cls stays."""
    width = table.shape[-1]
    if config.positions == "sincos":
        return sincos_positions(width, config.grid)
    trained = round((table.shape[1] - 1) ** 0.5)
    square = table[:, 1:].reshape(1, trained, trained, width).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(config.grid, config.grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], square.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
