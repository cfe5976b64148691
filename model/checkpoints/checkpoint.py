"""Checkpoints: reading those of any known program, and writing our own file format.

A file's content tells its kind. Only tensors and the plain `argparse.Namespace` of upstream's training script
are ever unpickled.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from model.atomic_write import atomic_write
from model.checkpoints import foreign, preprocessors
from model.checkpoints.errors import WeightsError, wrap_read_errors
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
    """The content of a file or folder of weights.

    Attributes:
        config: sizes, name, and the decoder's target.
        preprocessing: how images become the model's squares.
        layout: the program whose format the file has.
        tensors: weights under upstream's key names, exactly those that `config` asks for; float32 and finite.
        license: licence of the weights, if the file or its model card names one.
        heads: classification head and whitening, which only our own format has.
    """

    config: MAEConfig
    preprocessing: Preprocessing
    layout: Layout
    tensors: dict[str, Tensor]
    license: str | None = None
    heads: Heads = field(default_factory=Heads)

    def build(self, image_size: int | None = None) -> Autoencoder:
        """Builds the model in eval mode, without gradients; where possible it shares this checkpoint's memory.

        Args:
            image_size: side of the square to serve, if it is not that of training. Fixed sine-cosine positions are
                computed for the new grid; learned ones are interpolated (bicubic), as fine-tuning at another size does;
                a convolutional model has none.

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
        with torch.device("meta"):  # the weights are assigned below: to initialise them would be wasted
            model = build_model(config)
        model.load_state_dict(tensors, assign=True)
        return model.requires_grad_(False).eval()


def load(path: Path, model: str | None = None, norm_pix_loss: bool | None = None) -> Checkpoint:
    """Reads any checkpoint of a masked autoencoder, with a decoder or without.

    The known kinds are our own safetensors; facebookresearch/mae `.pth`, released or written in training; folders of
    Hugging Face's ViTMAE, with the key names of every generation of transformers; and timm's encoders, as a folder or a
    bare file.

    Args:
        path: a file or a folder.
        model: a preset that the sizes must agree with. It gives the number of heads where the file does not;
            otherwise that number is guessed from the width, since tensors do not tell it.
        norm_pix_loss: whether the decoder predicts normalised pixels; None takes the file's word, or no.

    Raises:
        WeightsError: the file is missing, foreign or damaged, or is not the preset `model`.
    """
    preset = _preset(model)
    with wrap_read_errors(path):
        checkpoint = _load_folder(path, preset) if path.is_dir() else _load_file(path, preset)
    if preset is not None:
        foreign.require_agreement(path, checkpoint.config, preset)
    _require_exact(path, checkpoint.tensors, checkpoint.config)
    config = checkpoint.config
    if norm_pix_loss is not None:
        config = config.model_copy(update={"norm_pix_loss": norm_pix_loss})
    logger.info("%s: layout %s, decoder %s", path, checkpoint.layout, "present" if config.has_decoder else "absent")
    return replace(checkpoint, config=config)


def save(path: Path, checkpoint: Checkpoint, half: bool = False) -> None:
    """Writes our own format, safetensors with a `Metadata` inside: a whole file or none, and through to the disk.

    Args:
        path: the file to write or replace; its folder exists.
        checkpoint: the model to write.
        half: store float16, at half the size; loading gives float32 again.

    Raises:
        WeightsError: a weight is not finite, or too large for float16.
        OSError: the file cannot be written; a file that stood at `path` is unchanged.
    """
    dtype = torch.float16 if half else torch.float32
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in checkpoint.tensors.items()}
    if not_finite := _not_finite(tensors):
        raise WeightsError(f"{path} would hold infinities or NaN in {_summarise(not_finite)}: it was not written")
    tensors |= {name: torch.from_numpy(array) for name, array in checkpoint.heads.arrays().items()}
    metadata = Metadata(
        config=checkpoint.config,
        preprocessing=checkpoint.preprocessing,
        license=checkpoint.license,
        head=checkpoint.heads.head and checkpoint.heads.head.config,
    )
    # Not safetensors' save_file, which leaves the file unreadable to everyone else.
    atomic_write(path, safetensors.torch.save(tensors, {METADATA_KEY: metadata.model_dump_json()}), durable=True)


def _load_file(path: Path, preset: MAEConfig | None) -> Checkpoint:
    if metadata := read_metadata(path):
        stored = _to_float32(path, load_file(path))
        head_arrays = {name: x.numpy() for name, x in stored.items() if is_head_tensor(name)}
        heads = Heads.from_arrays(path, head_arrays, metadata)
        tensors = {name: x for name, x in stored.items() if not is_head_tensor(name)}
        if metadata.config.positions == "sincos" and foreign.kind_of_positions(tensors) != "sincos":
            raise WeightsError(f"{path} declares sine-cosine positions but holds other ones")
        return Checkpoint(metadata.config, metadata.preprocessing, "mae-serve", tensors, metadata.license, heads)
    tensors, arguments = (_to_float32(path, load_file(path)), {}) if is_safetensors(path) else _read_pickle(path, path)
    config = foreign.infer_config(path, tensors, preset, readable_name(path))
    config = config.model_copy(update={"norm_pix_loss": bool(arguments.get("norm_pix_loss", False))})
    layout: Layout = "timm" if is_safetensors(path) and not config.has_decoder else "facebookresearch"
    return Checkpoint(config, Preprocessing(), layout, tensors)


def _load_folder(folder: Path, preset: MAEConfig | None) -> Checkpoint:
    settings = _read_json(folder, "config.json")
    kind = settings.get("model_type")
    if kind != "vit_mae" and "architecture" not in settings:
        raise WeightsError(
            f"{folder} has the model_type {kind!r} in its config.json: expected vit_mae, or a config of timm's"
        )
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors |= _to_float32(folder, load_file(file)) if is_safetensors(file) else _read_pickle(file, folder)[0]
    name = readable_name(folder)
    if kind != "vit_mae":
        timm = preprocessors.TimmConfig.model_validate(settings).pretrained_cfg
        config = foreign.infer_config(folder, tensors, preset, name)
        preprocessing = timm.to_preprocessing(config.image_size, folder)
        return Checkpoint(config, preprocessing, "timm", tensors, timm.license or card_license(folder))
    tensors = foreign.to_upstream_names(folder, tensors)
    config = foreign.HuggingFaceConfig.model_validate(settings).to_config(tensors, name)
    if (folder / "preprocessor_config.json").is_file():
        settings = _read_json(folder, "preprocessor_config.json")
        preprocessor = preprocessors.HuggingFacePreprocessor.model_validate(settings)
        preprocessing = preprocessor.to_preprocessing(config.image_size, folder)
    else:
        # transformers' own default standardises with 0.5, which no published masked autoencoder was trained with
        logger.warning("%s has no preprocessor_config.json: images are prepared as upstream's MAE does", folder)
        preprocessing = Preprocessing()
    return Checkpoint(config, preprocessing, "huggingface", tensors, card_license(folder))


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in the file `name` of a folder of weights."""
    path = folder / name
    if not path.is_file():
        raise WeightsError(f"{folder} holds no {name}: expected a folder of Hugging Face's ViTMAE or of timm")
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:
        raise WeightsError(f"{folder} has a {name} that is not JSON") from error
    if not isinstance(settings, dict):
        raise WeightsError(f"{folder} has a {name} that is not a JSON object")
    return settings


def _read_pickle(file: Path, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of a torch file, and the arguments that the training script kept beside it.

    Messages name `path`, which is the file or its folder.
    """
    with file.open("rb") as opened:
        magic = opened.read(2)
    if magic not in (b"PK", b"\x80\x02"):  # torch's zip archives, and its pickles before version 1.6
        raise WeightsError(f"{path} is neither a safetensors file nor a PyTorch checkpoint")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # untrusted bytes can make an unpickler raise anything
        raise WeightsError(
            f"{path} is refused by PyTorch's safe loader: it is damaged, or holds more than tensors"
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else None
    arguments = content.get("args") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise WeightsError(f"{path} holds no state dict: expected names and tensors, at the top or under 'model'")
    return _to_float32(path, state), vars(arguments) if isinstance(arguments, argparse.Namespace) else {}


def _to_float32(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise WeightsError(f"{path} holds {name} as {tensor.dtype}: expected floating-point weights")
    return {str(name): tensor.detach().float() for name, tensor in tensors.items()}


def _require_exact(path: Path, tensors: dict[str, Tensor], config: MAEConfig) -> None:
    """Raises unless the names and shapes are those of the model, and every number is finite."""
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in build_model(config).state_dict().items()}
    if missing := expected.keys() - tensors.keys():
        raise WeightsError(f"{path} lacks {_summarise(missing)}, which a masked autoencoder of its size has")
    if unexpected := tensors.keys() - expected.keys():
        raise WeightsError(f"{path} holds {_summarise(unexpected)}, which no masked autoencoder of its size has")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise WeightsError(f"{path} holds {name} as {list(tensors[name].shape)}: expected {list(shape)}")
    if not_finite := _not_finite(tensors):
        raise WeightsError(f"{path} holds infinities or NaN in {_summarise(not_finite)}: expected finite weights")


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that hold infinities or NaN."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def _summarise(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return f"{first} and {len(others)} more" if others else first


def _preset(model: str | None) -> MAEConfig | None:
    if model is not None and model not in PRESETS:
        raise WeightsError(f"there is no preset {model!r}: the presets are {', '.join(PRESETS)}")
    return None if model is None else PRESETS[model]


def _regrid(table: Tensor, config: MAEConfig) -> Tensor:
    """Position table [1, 1 + N, D] for the config's grid; the vector of cls stays."""
    width = table.shape[-1]
    if config.positions == "sincos":
        return sincos_positions(width, config.grid)
    trained = round((table.shape[1] - 1) ** 0.5)
    square = table[:, 1:].reshape(1, trained, trained, width).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(config.grid, config.grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], square.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
