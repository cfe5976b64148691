"""Pretraining a masked autoencoder on folders of images (He et al. 2021)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.checkpoints.checkpoint import Checkpoint, load
from model.checkpoints.locate import locate_named
from model.config import PRESETS, Loss, MAEConfig, Preprocessing
from model.images.folders import find_images
from model.masking import MaskError
from model.nn import build_model
from model.nn.base import DECODER_PREFIXES, Autoencoder, unfreeze
from model.nn.serving import Standardise
from model.training.config import Recipe
from model.training.dataset import Augmentation, ImageDataset
from model.training.distributed import DistributedContext
from model.training.held_out_loss import MEASURE, HeldOutLoss, choose_held_out_images
from model.training.optimiser import PRETRAINING_BETAS, adamw, muon, parameter_groups
from model.training.preview import Preview
from model.training.progress import TrainingProgress
from model.training.run import Run, RunError, first_sentence, record_images, require_same_images, restore_recipe
from model.training.session import run_session
from model.training.split import warn_of_skipped
from model.training.trainer import Task

MODEL = "model."

log = logging.getLogger(__name__)


class Pretraining(nn.Module):
    """The objective: uint8 patches [B, N, P] and visible indices [B, K] -> the masked loss, a scalar."""

    def __init__(self, model: Autoencoder, preprocessing: Preprocessing, loss: Loss) -> None:
        """Wraps `model`, whose tensors keep their names after `MODEL`."""
        super().__init__()
        self.model = model
        self.standardise = Standardise(preprocessing, model.config.patch_size)
        self.loss: Loss = loss

    def forward(self, patches: Tensor, visible_indices: Tensor, labels: Tensor) -> Tensor:
        """The loss; `labels` are not used."""
        loss: Tensor = self.model(self.standardise(patches), visible_indices, self.loss)[0]
        return loss


def pretrain(
    folders: Sequence[Path],
    output: Path,
    recipe: Recipe,
    context: DistributedContext,
    progress: TrainingProgress,
    resume: bool,
) -> Path:
    """Pretrains a model, or goes on pretraining it, and leaves its weights in `output`.

    Args:
        folders: images, and folders of images at any depth.
        output: the run's folder; it is made if it does not exist.
        recipe: the options; those of a resumed run come from `restore_pretraining`.
        context: this process among the others.
        progress: shows how far the run is.
        resume: go on with the run in `output`.

    Returns:
        The file of weights, which can be served.

    Raises:
        RunError: the run cannot be begun or resumed.
        NoImages: there is no image to train on.
        WeightsError: the weights that `init` names cannot be read.
        Interrupted, DivergedError, OSError: as `Trainer.fit`.
    """
    name = recipe.name or output.absolute().name
    return run_session(
        lambda: PretrainingTask(folders, name, recipe, context), output, recipe, context, progress, resume
    )


class PretrainingTask(Task):
    """An autoencoder that learns to reconstruct images; the reports are sheets of reconstructions and held-out loss."""

    def __init__(self, folders: Sequence[Path], name: str, recipe: Recipe, context: DistributedContext) -> None:
        """Finds the images and makes the model, which is to be served under `name`.

        Raises:
            RunError, NoImages, WeightsError: as `pretrain`.
        """
        paths, refused, left_out = find_images(folders)
        warn_of_skipped(refused, left_out)
        held_out = choose_held_out_images(len(paths), recipe.validation_share, recipe.seed)
        training = [path for number, path in enumerate(paths) if number not in held_out]
        self.dataset = ImageDataset(training, max_pixels=recipe.max_pixels)
        self.images = record_images(paths, folders)
        self.description = f"{len(self.dataset.paths)} images, {len(held_out)} held out"
        self._start = start = starting_point(recipe, name)
        self.augmentation = Augmentation(
            start.config, start.preprocessing, recipe.crop_scale, recipe.mask_ratio, recipe.strategy
        )
        require_mask(self.augmentation)
        model = start.build()
        unfreeze(model)
        self.objective = Pretraining(model, start.preprocessing, recipe.loss).to(context.device).train()
        self.optimiser = make_optimiser(recipe, self.objective)
        self.ema = recipe.ema
        self.report_minutes = recipe.preview_minutes
        self._held_out_loss: HeldOutLoss | None = None
        if held_out:
            threads = recipe.workers or context.decode_threads
            self._held_out_loss = HeldOutLoss(
                ImageDataset([paths[number] for number in sorted(held_out)], max_pixels=recipe.max_pixels),
                self.augmentation,
                recipe.loss,
                threads,
            )
            self.measures, self.reports_start = (MEASURE,), True
        self._num_held_out = len(held_out)
        self._device = context.device
        self._preview_images = recipe.preview_images
        self._preview: Preview | None = None

    def checkpoint(self, state: Mapping[str, Tensor]) -> Checkpoint:
        """The model without the rest of the objective."""
        tensors = {
            name.removeprefix(MODEL): tensor.float().cpu() for name, tensor in state.items() if name.startswith(MODEL)
        }
        return Checkpoint(self._start.config, self._start.preprocessing, "mae-serve", tensors, self._start.license)

    def report(self, step: int, checkpoint: Checkpoint, run: Run, progress: TrainingProgress) -> str:
        """Measures the loss on held-out images, and saves a sheet of reconstructions."""
        if self._preview_images:
            if self._preview is None:
                self._preview = Preview(self.dataset, self.augmentation, self._preview_images)
            run.save_preview(step, self._preview.render(checkpoint))
        if self._held_out_loss is None:
            return ""
        loss = self._held_out_loss.measure(checkpoint, self._device)
        run.log({"step": step, MEASURE: loss})
        progress.say(f"step {step}: loss {loss:.4f} on {self._num_held_out} held-out images")
        return f"{MEASURE} {loss:.4f}"


def require_mask(augmentation: Augmentation) -> None:
    """Raises RunError unless the mask ratio leaves a patch visible and removes one."""
    try:
        augmentation.mask(np.random.default_rng(0))
    except MaskError as error:
        raise RunError(f"--mask-ratio {augmentation.mask_ratio:g} does not fit: {error}") from error


def make_optimiser(recipe: Recipe, objective: nn.Module) -> torch.optim.Optimizer:
    """Makes the optimiser that the recipe names, for the trainable parameters.

    Raises:
        RunError: the model has no parameters for it.
    """
    if recipe.optimiser == "adamw":
        return adamw(parameter_groups(objective.named_parameters(), recipe.weight_decay), PRETRAINING_BETAS)
    try:
        return muon(objective.named_parameters(), recipe.weight_decay, recipe.muon_scale)
    except ValueError as error:
        raise RunError(f"--optimiser muon does not fit: {error}") from error


def starting_point(recipe: Recipe, name: str) -> Checkpoint:
    """The model before its first step: upstream's initialisation, or the weights that `init` names.

    Raises:
        RunError: there is no such model.
        WeightsError: the weights cannot be read.
    """
    config = model_config(recipe)
    if recipe.init is None:
        model = build_model(config.model_copy(update={"name": name}))
        return Checkpoint(model.config, Preprocessing(), "mae-serve", dict(model.state_dict()), recipe.license)
    weights = load(locate_named(recipe.init).path, heads=recipe.heads)
    weights.log_notes(recipe.init)
    return warm_start(weights, config, recipe, name)


def model_config(recipe: Recipe) -> MAEConfig:
    """The recipe's preset, with the changes that the recipe makes to it.

    Raises:
        RunError: there is no such preset, or it cannot be changed so.
    """
    if recipe.model not in PRESETS:
        raise RunError(f"there is no preset {recipe.model!r}: the presets are {', '.join(PRESETS)}")
    changes: dict[str, Any] = {"norm_pix_loss": recipe.norm_pix_loss}
    if recipe.image_size is not None:
        changes["image_size"] = recipe.image_size
    if recipe.decoder_depth is not None:
        changes["decoder_depth"] = recipe.decoder_depth
    try:
        return MAEConfig(**(PRESETS[recipe.model].model_dump() | changes))
    except ValueError as error:
        raise RunError(f"{recipe.model} cannot have these options: {first_sentence(error)}") from error


def warm_start(weights: Checkpoint, config: MAEConfig, recipe: Recipe, name: str) -> Checkpoint:
    """The model of `weights` for the recipe's loss and image size; a missing or different decoder is made anew.

    Args:
        weights: the weights that `init` names.
        config: gives the sizes of a decoder that is made anew.
        recipe: the options.
        name: the model's new name.

    Raises:
        RunError: the model cannot have the recipe's image size or decoder.
    """
    if weights.config.final_norm == "pooled":
        raise RunError(
            f"{recipe.init} is a classifier that norms no tokens, so no decoder can read them: start from the weights "
            "that it was fine-tuned from"
        )
    size = recipe.image_size or weights.config.image_size
    merged = weights.config.model_dump() | {"name": name, "image_size": size, "norm_pix_loss": recipe.norm_pix_loss}
    new_decoder = not weights.config.has_decoder or (
        recipe.decoder_depth is not None and recipe.decoder_depth != weights.config.decoder_depth
    )
    if new_decoder:
        sizes = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "decoder_mlp_ratio")
        merged |= {key: getattr(config, key) for key in sizes}
        log.warning("%s: the decoder is made anew", recipe.init)
    try:
        model = build_model(MAEConfig(**merged))
    except ValueError as error:
        raise RunError(f"{recipe.init} cannot have these options: {first_sentence(error)}") from error
    tensors = dict(model.state_dict())
    for key, tensor in weights.build(size).state_dict().items():
        if not (new_decoder and key.startswith(DECODER_PREFIXES)):
            tensors[key] = tensor
    return Checkpoint(model.config, weights.preprocessing, "mae-serve", tensors, recipe.license or weights.license)


def restore_pretraining(
    output: Path, recipe: Recipe, explicit: set[str], folders: Sequence[Path] | None
) -> tuple[Recipe, list[Path]]:
    """Reads recipe and folders of the run in `output`, for resuming it.

    Args:
        output: the run's folder.
        recipe: the options of the command that resumes it.
        explicit: names of the options in `recipe` that the user gave.
        folders: images to take instead of the run's folders, if they have moved.

    Raises:
        RunError: there is no run, an option would change it, or the images are not those of before.
    """
    restored, images = restore_recipe(output, recipe, explicit, {"validation_share": 0})
    folders = [Path(path) for path in images["folders"]] if not folders else list(folders)
    require_same_images(output, images, record_images(find_images(folders).images, folders))
    return restored, folders
