"""Checkpoints: reading those of any known program, and writing our own file format.

A file's content tells its kind.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.atomic_write import atomic_write
from model.checkpoints import classifiers, foreign, huggingface, names, preprocessors
from model.checkpoints.attention_heads import HeadCounts, replace_head_counts
from model.checkpoints.errors import WeightsError, summarise, wrap_read_errors
from model.checkpoints.heads import Heads, is_head_tensor
from model.checkpoints.heads_file import read_folder_heads
from model.checkpoints.locate import license_of, read_json, readable_name, weight_files
from model.checkpoints.native import METADATA_KEY, Metadata, is_safetensors, read_metadata
from model.checkpoints.tensors import names_not_finite, regrid, require_exact, to_float32
from model.checkpoints.torch_files import TorchFile, read_torch_file
from model.config import PRESETS, MAEConfig, Preprocessing
from model.nn import build_model
from model.nn.base import Autoencoder

Layout = Literal["mae-serve", "facebookresearch", "huggingface", "timm", "mmpretrain"]
TARGETS = ("norm_pix_loss", "norm_pix")
"""Names of the argument that tells whether the decoder predicts normalised pixels."""
IMAGENET = (
    "it does not tell how its images were prepared, so ImageNet's mean and deviation and the resize of upstream's MAE "
    "are used: PREPROCESS, or mae convert --preprocess, replaces any of it"
)

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
        heads: classification head, whitening and memory bank.
        notes: sentences about what the file did not tell and what was taken instead, and about names that were changed
            or left out; each goes on after the file's name and a colon.
        target_is_known: whether file or operator told what the decoder predicts.
    """

    config: MAEConfig
    preprocessing: Preprocessing
    layout: Layout
    tensors: dict[str, Tensor]
    license: str | None = None
    heads: Heads = field(default_factory=Heads)
    notes: tuple[str, ...] = ()
    target_is_known: bool = True

    def log_notes(self, name: str) -> None:
        """Writes the notes to the log, as warnings about the weights `name`."""
        for note in self.notes:
            logger.warning("%s: %s", name, note)

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
            tables = {name: regrid(tensors[name], config) for name in foreign.POSITION_TABLES if name in tensors}
            tensors = tensors | tables
        with torch.device("meta"):  # the weights are assigned below: to initialise them would be wasted
            model = build_model(config)
        model.load_state_dict(tensors, assign=True)
        return model.requires_grad_(False).eval()


def load(
    path: Path, model: str | None = None, norm_pix_loss: bool | None = None, heads: Sequence[int] | None = None
) -> Checkpoint:
    """Reads any checkpoint of a masked autoencoder, with a decoder or without.

    The known kinds are our own safetensors; facebookresearch/mae `.pth`, released or written in training, and what
    other programs write under its names (Lightning, DistributedDataParallel, lightly, solo-learn, timm); mmpretrain's;
    folders of Hugging Face's ViTMAE, with the key names of every generation of transformers; and timm's encoders, as a
    folder or a bare file.

    Args:
        path: a file or a folder.
        model: a preset that the sizes must agree with, and which gives the numbers of attention heads.
        norm_pix_loss: whether the decoder predicts normalised pixels; None takes the file's word, or no.
        heads: the number of the encoder's attention heads, or those of encoder and decoder. They replace what the file
            tells. Where neither tells, the numbers are guessed from the widths, since tensors do not tell them.

    Raises:
        WeightsError: the file is missing, foreign or damaged, or is not the preset `model`.
    """
    preset, counts = _preset(model), HeadCounts.of(heads)
    with wrap_read_errors(path):
        if path.is_dir():
            checkpoint = _with_heads_file(path, _load_folder(path, preset, counts))
        else:
            checkpoint = _load_file(path, preset, counts)
        config, head_notes = replace_head_counts(path, checkpoint.config, counts)
        checkpoint = replace(checkpoint, config=config, notes=(*checkpoint.notes, *head_notes))
    if preset is not None:
        foreign.require_agreement(path, checkpoint.config, preset)
    require_exact(path, checkpoint.tensors, checkpoint.config)
    classifiers.require_width(path, checkpoint.heads.head, checkpoint.config.embed_dim)
    config = checkpoint.config
    if norm_pix_loss is not None:
        config = config.model_copy(update={"norm_pix_loss": norm_pix_loss})
        checkpoint = replace(checkpoint, target_is_known=True)
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
    if not_finite := names_not_finite(tensors):
        raise WeightsError(f"{path} would hold infinities or NaN in {summarise(not_finite)}: it was not written")
    tensors |= {name: torch.from_numpy(array) for name, array in checkpoint.heads.arrays().items()}
    metadata = describe(checkpoint)
    # Not safetensors' save_file, which leaves the file unreadable to everyone else.
    # Earlier releases do not know `final_norm`, and read every file that needs it not.
    unused = {"config": {"final_norm"}} if checkpoint.config.final_norm == "tokens" else None
    text = metadata.model_dump_json(exclude=unused)
    atomic_write(path, safetensors.torch.save(tensors, {METADATA_KEY: text}), durable=True)


def describe(checkpoint: Checkpoint) -> Metadata:
    """The description of a model that its file carries."""
    return Metadata(
        config=checkpoint.config,
        preprocessing=checkpoint.preprocessing,
        license=checkpoint.license,
        head=checkpoint.heads.head and checkpoint.heads.head.config,
    )


def _load_file(path: Path, preset: MAEConfig | None, counts: HeadCounts) -> Checkpoint:
    if metadata := read_metadata(path):
        stored = to_float32(path, load_file(path))
        head_arrays = {name: x.numpy() for name, x in stored.items() if is_head_tensor(name)}
        heads = Heads.from_arrays(path, head_arrays, metadata)
        tensors = {name: x for name, x in stored.items() if not is_head_tensor(name)}
        if metadata.config.positions == "sincos" and foreign.kind_of_positions(tensors) != "sincos":
            raise WeightsError(f"{path} declares sine-cosine positions but holds other ones")
        return Checkpoint(metadata.config, metadata.preprocessing, "mae-serve", tensors, metadata.license, heads)
    file = TorchFile(load_file(path), {}, "") if is_safetensors(path) else read_torch_file(path, path)
    checkpoint = _foreign(path, file, preset, counts, readable_name(path))
    return replace(checkpoint, license=license_of(path), notes=(*checkpoint.notes, IMAGENET))


def _load_folder(folder: Path, preset: MAEConfig | None, counts: HeadCounts) -> Checkpoint:
    settings = read_json(folder, "config.json")
    kind, architecture = settings.get("model_type"), settings.get("architecture")
    foreign.require_vit(folder, str(architecture or kind))
    if kind not in huggingface.MODEL_TYPES and architecture is None:
        raise WeightsError(
            f"{folder} has the model_type {kind!r} in its config.json: expected vit_mae or vit, or a config of timm's"
        )
    tensors: dict[str, Tensor] = {}
    for file in weight_files(folder):
        tensors |= load_file(file) if is_safetensors(file) else read_torch_file(file, folder).tensors
    name = readable_name(folder)
    if kind not in huggingface.MODEL_TYPES:
        timm = preprocessors.TimmConfig.model_validate(settings)
        timm.require_known_arguments(folder)
        content = TorchFile(tensors, timm.arguments, "")
        checkpoint = _foreign(folder, content, preset, counts, name, classifiers.labels_of(timm.labels))
        preparation = timm.pretrained_cfg
        return replace(
            checkpoint,
            preprocessing=preparation.to_preprocessing(checkpoint.config.image_size, folder),
            layout="timm",
            license=preparation.license or license_of(folder),
        )
    hugging_face = huggingface.HuggingFaceConfig.model_validate(settings)
    tensors = huggingface.to_upstream_names(folder, to_float32(folder, tensors))
    notes = huggingface.drop_pooler(tensors)
    labels = hugging_face.labels(folder) if "head.weight" in tensors else None
    heads, head_notes = _take_head(folder, tensors, "token", labels)
    config, preprocessing = hugging_face.to_config(tensors, name), Preprocessing()
    notes += head_notes
    if (folder / "preprocessor_config.json").is_file():
        settings = read_json(folder, "preprocessor_config.json")
        preprocessor = preprocessors.HuggingFacePreprocessor.model_validate(settings)
        preprocessing = preprocessor.to_preprocessing(config.image_size, folder)
    else:
        # transformers' own default standardises with 0.5, which no published masked autoencoder was trained with
        notes.append(IMAGENET)
    return Checkpoint(config, preprocessing, "huggingface", tensors, license_of(folder), heads, tuple(notes))


def _foreign(
    path: Path,
    file: TorchFile,
    preset: MAEConfig | None,
    counts: HeadCounts,
    name: str,
    labels: Sequence[str] | None = None,
) -> Checkpoint:
    """The checkpoint of a state dict that comes without a config of its own; images are prepared by our defaults."""
    notes = [f"its tensors were found under {file.container!r}"] if file.container not in ("", "model") else []
    notes += file.notes
    named = names.to_upstream_names(path, file.tensors)
    heads, head_notes = _take_head(path, named.tensors, file.arguments.get("global_pool"), labels)
    tensors = to_float32(path, named.tensors)
    notes += named.notes + names.complete_decoder(tensors)
    config, guesses = foreign.infer_config(path, tensors, preset, name, counts, file.arguments)
    notes += guesses + head_notes
    target = next((bool(file.arguments[key]) for key in TARGETS if key in file.arguments), None)
    if target is None and named.mmpretrain and config.has_decoder:
        notes.append("its decoder is taken to predict normalised pixels, as mmpretrain's recipes train it")
    config = config.model_copy(update={"norm_pix_loss": named.mmpretrain if target is None else target})
    layout: Layout = "mmpretrain" if named.mmpretrain else "facebookresearch"
    if path.is_file() and is_safetensors(path) and not config.has_decoder and not named.mmpretrain:
        layout = "timm"
    return Checkpoint(
        config,
        Preprocessing(),
        layout,
        tensors,
        heads=heads,
        notes=tuple(notes),
        target_is_known=target is not None,
    )


def _take_head(
    path: Path, tensors: dict[str, Tensor], global_pool: object, labels: Sequence[str] | None
) -> tuple[Heads, list[str]]:
    """Takes the classification head, if any, out of `tensors` under upstream's names; with notes about assumptions."""
    taken = to_float32(path, classifiers.take_head_tensors(tensors))
    if not taken:
        return Heads(), []
    pool = classifiers.pool_of(path, global_pool, "fc_norm.weight" in tensors)
    return Heads(classifiers.to_head(path, taken, pool, labels)), classifiers.assumptions(global_pool, pool, labels)


def _with_heads_file(folder: Path, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the heads of `heads.safetensors`, and with the exact share of the crop."""
    others, model, notes = read_folder_heads(folder)
    checkpoint = replace(checkpoint, notes=(*checkpoint.notes, *notes))
    if model is None:
        return checkpoint
    heads = replace(others, head=checkpoint.heads.head or others.head)
    side, exact, told = checkpoint.config.image_size, model.preprocessing, checkpoint.preprocessing
    if exact.resized_short_side(side) == told.resized_short_side(side):
        told = told.model_copy(update={"crop_fraction": exact.crop_fraction})
    return replace(checkpoint, heads=heads, preprocessing=told)


def _preset(model: str | None) -> MAEConfig | None:
    if model is not None and model not in PRESETS:
        raise WeightsError(f"there is no preset {model!r}: the presets are {', '.join(PRESETS)}")
    return None if model is None else PRESETS[model]
