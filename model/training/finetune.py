"""Fine-tuning and linear probing of a pretrained encoder on folders of classes (He et al. 2021, A.1 and A.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.checkpoints.checkpoint import Checkpoint, load
from model.checkpoints.heads import ROWS, Head, Heads, pools_of
from model.checkpoints.locate import locate, named
from model.checkpoints.native import HeadConfig
from model.config import Preprocessing
from model.nn.base import Autoencoder, let_learn
from model.nn.serving import EncoderGraph
from model.training.config import FinetuningRecipe
from model.training.dataset import Augmentation, ImageDataset, Loader
from model.training.distributed import DistributedContext, require_divisible
from model.training.head import LinearHead, folded
from model.training.optimiser import adamw, layered_groups
from model.training.progress import TrainingProgress
from model.training.resume import require_same_images, said_recipe
from model.training.run import WEIGHTS, Run, RunError
from model.training.split import find_examples
from model.training.trainer import Trainer, resumed
from model.training.validation import MEASURES, Validation

BETAS = (0.9, 0.999)  # He et al. 2021, table 9
DECODER = ("decoder", "mask_token")
MODEL, HEAD = "encoder.model.", "head."


class Finetuning(nn.Module):
    """The objective: uint8 patches [B, N, P], all positions [B, N] and labels [B] -> cross-entropy."""

    steps: Tensor

    def __init__(
        self, model: Autoencoder, preprocessing: Preprocessing, head: LinearHead, recipe: FinetuningRecipe
    ) -> None:
        """Around an encoder whose parameters learn or do not, as they say themselves."""
        super().__init__()
        self.encoder = EncoderGraph(model, preprocessing)
        self.head = head
        self.row = ROWS[recipe.pool]
        self.label_smoothing = recipe.label_smoothing
        self.mixup = recipe.mixup
        self.seed = recipe.seed
        # kept with the weights, so that a resumed run mixes as the uninterrupted one would have
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, patches: Tensor, visible_indices: Tensor, labels: Tensor) -> Tensor:
        """The loss, a scalar."""
        share = self._next_share() if self.mixup else 1.0
        if share < 1:  # Zhang et al. 2017: each image with another one of the batch, as timm's Mixup pairs them
            patches = share * patches.float() + (1 - share) * patches.flip(0).float()
        pooled, _ = self.encoder(patches, visible_indices)
        logits = self.head(pooled[:, self.row])
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if share < 1:
            other = F.cross_entropy(logits, labels.flip(0), label_smoothing=self.label_smoothing)
            loss = share * loss + (1 - share) * other
        return loss

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _next_share(self) -> float:
        """Of an image in its mixture, from Beta(alpha, alpha); a function of seed and step."""
        draw = np.random.default_rng((self.seed, 2, int(self.steps)))
        self.steps += 1
        return float(draw.beta(self.mixup, self.mixup))


def finetune(
    folder: Path,
    validation: Path | None,
    output: Path,
    recipe: FinetuningRecipe,
    place: DistributedContext,
    progress: TrainingProgress,
    resume: bool,
) -> Path:
    """Trains a classifier, or goes on training it, and leaves its weights in `output`.

    Args:
        folder: a folder for each class.
        validation: the same classes, to measure accuracy on; by default a share of `folder` is held out.
        output: the run's folder; made if it does not exist.
        recipe: what to do; of a resumed run, what `resumable_finetuning` says.
        place: this process among its peers.
        progress: told how it goes.
        resume: go on with the run in `output`.

    Returns:
        The file of weights, which can be served.

    Raises:
        RunError: the run cannot be begun or resumed.
        NoImages, ClassFolderError: there is nothing to train on.
        WeightsError: the weights cannot be read.
        Interrupted, DivergedError, OSError: as `Trainer.fit`.
    """
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads or place.cpus)
    require_divisible(recipe.batch_size, place)
    if recipe.frozen and recipe.batch_size // place.size < 2:
        raise RunError("--batch-size leaves a process one image, of which --frozen cannot take mean and variance")
    examples = find_examples(folder, validation, recipe.validation_share, recipe.seed)
    source = named(recipe.weights)
    start = starting_point(load(source.path), recipe, recipe.name or output.absolute().name)
    if recipe.pool not in pools_of(start.config):
        raise RunError(f"--pool {recipe.pool}: {start.config.name} is convolutional and has no cls token: take mean")
    run = Run(output, MEASURES if examples.validation else ())
    if place.is_main and not resume:
        run.begin(recipe, examples.facts | {"weights": source.digest})
    model = without_decoder(start).build()
    if not recipe.frozen:
        let_learn(model)
    head = LinearHead(start.config.embed_dim, len(examples.training.classes), normalised=recipe.frozen)
    objective = Finetuning(model, start.preprocessing, head, recipe)
    objective.to(place.device).train()
    facts = HeadConfig(pool=recipe.pool, classes=examples.training.classes)

    def checkpoint(state: dict[str, Tensor]) -> Checkpoint:
        trained = Head(facts, *folded(inside(state, HEAD)))
        if recipe.frozen:
            return replace(start, heads=replace(start.heads, head=trained))
        tensors = {name: tensor.float().cpu() for name, tensor in inside(state, MODEL).items()}
        return replace(start, tensors=tensors, heads=Heads(trained))

    groups = layered_groups(objective.named_parameters(), recipe.weight_decay, start.config.depth, recipe.layer_decay)
    photographs = ImageDataset(examples.training.paths, examples.training.labels)
    trainer = Trainer(objective, adamw(groups, BETAS), recipe, place, run, len(photographs.paths), checkpoint)
    if resume:
        resumed(run, trainer, output)
    workers = recipe.workers or (place.cpus if place.device.type == "cuda" else 1)
    measured, last = None, 0
    if place.is_main and examples.validation:
        measured = Validation(examples.validation, start.config, start.preprocessing, workers)

    def validate() -> None:
        nonlocal last
        if measured is None or trainer.step == last:
            return
        last = trainer.step
        served = trainer.served()
        assert served.heads.head is not None
        found = measured.measure(served, served.heads.head, place.device)
        run.log({"step": trainer.step, **dict(zip(MEASURES, (found.loss, found.accuracy), strict=True))})
        progress.note = f"val_accuracy {found.accuracy:.4f}"
        progress.say(
            f"step {trainer.step}: {found.accuracy:.2%} of {found.images} held-out images right, loss {found.loss:.4f}"
        )

    augmentation = Augmentation(start.config, start.preprocessing, recipe.crop_scale, 0, "random")
    loader = Loader(photographs, augmentation, recipe.seed, recipe.batch_size, (place.rank, place.size), workers)
    try:
        trainer.fit(loader, progress, validate, recipe.validation_minutes)
    finally:
        loader.close()
        if photographs.broken:
            progress.say(f"{len(photographs.broken)} of {len(photographs.paths)} images could not be read")
    return run.folder / WEIGHTS


def starting_point(found: Checkpoint, recipe: FinetuningRecipe, name: str) -> Checkpoint:
    """The weights before the first step, at the recipe's image size; a decoder stays only beside a frozen encoder.

    Raises:
        RunError: the model cannot have that size.
    """
    try:
        model = found.build(recipe.image_size)
    except ValueError as error:
        raise RunError(f"--image-size does not fit the weights: {error}") from error
    # whitening describes the vectors of an encoder at one image size
    same = recipe.frozen and model.config.image_size == found.config.image_size
    whole = Checkpoint(
        model.config.model_copy(update={"name": name}),
        found.preprocessing,
        "mae-serve",
        dict(model.state_dict()),
        recipe.license or found.license,
        Heads(whitening=found.heads.whitening if same else {}),
    )
    return whole if recipe.frozen else without_decoder(whole)


def without_decoder(checkpoint: Checkpoint) -> Checkpoint:
    """The encoder alone."""
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(DECODER)}
    return replace(checkpoint, config=checkpoint.config.model_copy(update={"decoder_depth": 0}), tensors=tensors)


def inside(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a part of the objective, under that part's own names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def resumable_finetuning(
    output: Path, recipe: FinetuningRecipe, given: set[str], folder: Path | None, validation: Path | None
) -> tuple[FinetuningRecipe, Path, Path | None]:
    """Recipe, images and held-out images of the run in `output`, and of `recipe` what was `given` anew and may be.

    Raises:
        RunError: there is no run, a choice would change it, or images or weights are not those of before.
    """
    before, data = said_recipe(output, recipe, given)
    folder = folder or Path(data["folders"][0])
    kept: Mapping[str, Any] | None = data["validation"]
    if validation is None and kept is not None:
        validation = Path(kept["folders"][0])
    now = find_examples(folder, validation, before.validation_share, before.seed).facts
    require_same_images(output, data, now)
    if (kept is None) != (now["validation"] is None):
        raise RunError(f"{output} was begun with other images held out")
    if kept is not None:
        require_same_images(output, kept, now["validation"])
    if locate(before.weights, None).digest != data["weights"]:
        raise RunError(f"{output} was begun with other weights than those that are now at {before.weights}")
    return before, folder, validation
