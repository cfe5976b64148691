"""Pretraining a masked autoencoder on folders of images (He et al. 2021)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.arrays import Bytes, Indices
from model.checkpoints.checkpoint import Checkpoint, load
from model.checkpoints.locate import named
from model.config import PRESETS, Loss, MAEConfig, Preprocessing
from model.images.folders import find_images
from model.images.png import png
from model.images.preprocess import cut, square
from model.images.render import panel, sheet
from model.masking import choose_visible, restore_indices_for
from model.nn import build_model
from model.nn.base import Autoencoder, let_learn
from model.nn.serving import DecoderGraph, EncoderGraph, Standardise
from model.training.config import Recipe
from model.training.dataset import Augmentation, ImageDataset, Loader
from model.training.distributed import DistributedContext, require_divisible
from model.training.optimiser import adamw, muon, plain_groups
from model.training.progress import TrainingProgress
from model.training.resume import facts_of, require_same_images, said_recipe
from model.training.run import WEIGHTS, Run, RunError
from model.training.trainer import Trainer, resumed

log = logging.getLogger(__name__)


class Pretraining(nn.Module):
    """The objective: uint8 patches [B, N, P] and positions [B, K] -> the masked loss."""

    def __init__(self, model: Autoencoder, preprocessing: Preprocessing, loss: Loss) -> None:
        """Around `model`, whose names stay its own."""
        super().__init__()
        self.model = model
        self.standardise = Standardise(preprocessing, model.config.patch_size)
        self.loss: Loss = loss

    def forward(self, patches: Tensor, visible_indices: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar; `labels` say nothing here."""
        loss: Tensor = self.model(self.standardise(patches), visible_indices, self.loss)[0]
        return loss


def pretrain(
    folders: Sequence[Path],
    folder: Path,
    recipe: Recipe,
    place: DistributedContext,
    progress: TrainingProgress,
    resume: bool,
) -> Path:
    """Trains, or goes on training, and leaves the weights in `folder`.

    Args:
        folders: images, and folders of them at any depth.
        folder: the run's; made if it does not exist.
        recipe: what to do; of a resumed run, what its recipe.json says, but for what does not shape the weights.
        place: this process among its peers.
        progress: told how it goes.
        resume: go on with the run in `folder`.

    Returns:
        The file of weights, which can be served.

    Raises:
        RunError: the run cannot be begun or resumed.
        NoImages: there is nothing to train on.
        WeightsError: `init` cannot be read.
        Interrupted, DivergedError, OSError: as `Trainer.fit`.
    """
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads or place.cpus)
    images, refused = find_images(folders)
    for path, reason in refused:
        log.warning("skipped: %s: %s", path, reason)
    photographs = ImageDataset(images)
    start = starting_point(recipe, recipe.name or folder.absolute().name)
    require_divisible(recipe.batch_size, place)
    model = start.build()
    let_learn(model)
    objective = Pretraining(model, start.preprocessing, recipe.loss)
    objective.to(place.device).train()
    optimiser = optimiser_of(recipe, objective)
    run = Run(folder)
    if place.is_main and not resume:  # last, so that what cannot be leaves no run behind
        run.begin(recipe, facts_of(images, folders))

    def checkpoint(state: dict[str, Tensor]) -> Checkpoint:
        tensors = {name.removeprefix("model."): x.float().cpu() for name, x in state.items() if name[:6] == "model."}
        return Checkpoint(start.config, start.preprocessing, "mae-serve", tensors, start.license)

    trainer = Trainer(
        objective,
        optimiser,
        recipe,
        place,
        run,
        len(images),
        checkpoint,
        recipe.ema,
    )
    if resume:
        resumed(run, trainer, folder)
    augmentation = Augmentation(
        start.config, start.preprocessing, recipe.crop_scale, recipe.mask_ratio, recipe.strategy
    )
    workers = recipe.workers or (place.cpus if place.device.type == "cuda" else 1)
    loader = Loader(photographs, augmentation, recipe.seed, recipe.batch_size, (place.rank, place.size), workers)
    preview = (
        Preview(photographs, augmentation, recipe.preview_images) if place.is_main and recipe.preview_images else None
    )

    def show() -> None:
        if preview is not None:
            run.preview(trainer.step, preview.render(trainer.served()))

    try:
        trainer.fit(loader, progress, show, recipe.preview_minutes)
    finally:
        loader.close()
        if photographs.broken:
            progress.say(f"{len(photographs.broken)} of {len(images)} images could not be read and were skipped")
    return run.folder / WEIGHTS


def optimiser_of(recipe: Recipe, objective: nn.Module) -> torch.optim.Optimizer:
    """What the recipe names, over the parameters that learn.

    Raises:
        RunError: the model has nothing for it.
    """
    if recipe.optimiser == "adamw":
        return adamw(plain_groups(objective.named_parameters(), recipe.weight_decay))
    try:
        return muon(objective.named_parameters(), recipe.weight_decay, recipe.muon_scale)
    except ValueError as error:
        raise RunError(f"--optimiser muon does not fit: {error}") from error


def starting_point(recipe: Recipe, name: str) -> Checkpoint:
    """The model before its first step: upstream's initialisation, or the weights that `init` names."""
    config = preset_of(recipe)
    if recipe.init is None:
        fresh = build_model(config.model_copy(update={"name": name}))
        return Checkpoint(fresh.config, Preprocessing(), "mae-serve", dict(fresh.state_dict()), recipe.license)
    found = load(named(recipe.init).path)
    return warm_start(found, config, recipe, name)


def preset_of(recipe: Recipe) -> MAEConfig:
    """The preset with what the recipe changes of it.

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
        raise RunError(f"{recipe.model} cannot be like this: {error}") from error


def warm_start(found: Checkpoint, config: MAEConfig, recipe: Recipe, name: str) -> Checkpoint:
    """The weights of `found` for the recipe's loss and image size; a missing or unlike decoder is made anew."""
    size = recipe.image_size or found.config.image_size
    merged = found.config.model_dump() | {"name": name, "image_size": size, "norm_pix_loss": recipe.norm_pix_loss}
    decoder = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads", "decoder_mlp_ratio")
    fresh_decoder = not found.config.has_decoder or (
        recipe.decoder_depth is not None and recipe.decoder_depth != found.config.decoder_depth
    )
    if fresh_decoder:
        merged |= {key: getattr(config, key) for key in decoder}
        log.warning("%s: the decoder is made anew", recipe.init)
    try:
        fresh = build_model(MAEConfig(**merged))
    except ValueError as error:
        raise RunError(f"{recipe.init} cannot be like this: {error}") from error
    tensors = dict(fresh.state_dict())
    kept = found.build(size).state_dict()
    tensors |= {n: x for n, x in kept.items() if not (fresh_decoder and n.startswith(("decoder", "mask_token")))}
    return Checkpoint(fresh.config, found.preprocessing, "mae-serve", tensors, recipe.license or found.license)


class Preview:
    """A few fixed images through fixed masks, as the model in training reconstructs them."""

    def __init__(self, photographs: ImageDataset, augmentation: Augmentation, count: int) -> None:
        """Takes the first `count` images of a fixed shuffle."""
        config = augmentation.config
        chosen = np.random.default_rng(0).permutation(len(photographs.paths))[:count]
        squares = []
        for index in chosen:
            image, _ = photographs.load(int(index), config.image_size)
            squares.append(cut(np.asarray(square(image, config, augmentation.preprocessing)), config.patch_size))
        self._patches: Bytes = np.stack(squares)
        seeds = range(len(squares))
        self._positions: Indices = np.stack(
            [choose_visible(augmentation.strategy, config.grid, augmentation.mask_ratio, seed) for seed in seeds]
        )

    def render(self, checkpoint: Checkpoint) -> bytes:
        """Original, masked, reconstruction and composite of each image, as PNG."""
        model, config = checkpoint.build(), checkpoint.config
        visible = np.take_along_axis(self._patches, self._positions[..., None].astype(np.int64), axis=1)
        patches, visible_indices, rows = map(
            torch.from_numpy, (self._patches, self._positions, restore_indices_for(self._positions, config.num_patches))
        )
        with torch.inference_mode():
            _, latent = EncoderGraph(model, checkpoint.preprocessing)(torch.from_numpy(visible), visible_indices)
            pixels, _ = DecoderGraph(model, checkpoint.preprocessing)(latent, rows, patches)
        return png(sheet([panel(*one) for one in zip(self._patches, pixels.numpy(), self._positions, strict=True)]))


def resumable(
    folder: Path, recipe: Recipe, given: set[str], folders: Sequence[Path] | None
) -> tuple[Recipe, list[Path]]:
    """Recipe and images of the run in `folder`, and of `recipe` what was `given` anew and may be.

    Raises:
        RunError: there is no run, a choice would change it, or the images are not those of before.
    """
    before, data = said_recipe(folder, recipe, given)
    paths = [Path(path) for path in data["folders"]] if not folders else list(folders)
    require_same_images(folder, data, facts_of(find_images(paths)[0], paths))
    return before, paths
