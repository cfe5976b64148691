"""Fine-tuning of a pretrained encoder on folders of classes (He et al. 2021, A.1).

It also goes on with runs of linear probing by gradients, which earlier versions began; new ones are those of
`model.training.linear_probing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.checkpoints.checkpoint import Checkpoint, load
from model.checkpoints.heads import POOL_INDEX, Head, Heads, pools_of, why_no_cls
from model.checkpoints.locate import locate_named
from model.checkpoints.native import HeadConfig, Pooled
from model.config import MAEConfig, Preprocessing
from model.nn.base import DECODER_PREFIXES, Autoencoder, unfreeze
from model.nn.serving import EncoderGraph
from model.training.config import FinetuningRecipe
from model.training.dataset import Augmentation, ImageDataset
from model.training.distributed import DistributedContext
from model.training.head import LinearHead, fold_batch_norm
from model.training.optimiser import FINETUNING_BETAS, adamw, layer_decay_groups
from model.training.progress import TrainingProgress
from model.training.run import Run, RunError, first_sentence, require_same_images, restore_recipe
from model.training.session import run_session
from model.training.split import require_readable_classes, split_images
from model.training.trainer import Task
from model.training.validation import MEASURES, Validation

MODEL, HEAD = "encoder.model.", "head."


class Finetuning(nn.Module):
    """The objective: uint8 patches [B, N, P], all indices [B, N] and labels [B] -> the cross-entropy, a scalar."""

    steps: Tensor

    def __init__(
        self, model: Autoencoder, preprocessing: Preprocessing, head: LinearHead, recipe: FinetuningRecipe
    ) -> None:
        """Wraps an encoder, frozen or not, and a head."""
        super().__init__()
        self.encoder = EncoderGraph(model, preprocessing)
        self.head = head
        self.pool_index = POOL_INDEX[recipe.pool]
        self.label_smoothing = recipe.label_smoothing
        self.mixup = recipe.mixup
        self.seed = recipe.seed
        # It is saved with the weights, so that a resumed run mixes as the uninterrupted one would have.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, patches: Tensor, visible_indices: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        share = self._draw_share() if self.mixup else 1.0
        if share < 1:  # Zhang et al. 2017; an image is mixed with another one of its batch, as by timm's Mixup
            patches = share * patches.float() + (1 - share) * patches.flip(0).float()
        pooled, _ = self.encoder(patches, visible_indices)  # [B, 2, D]
        logits = self.head(pooled[:, self.pool_index])  # [B, C]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if share < 1:
            other = F.cross_entropy(logits, labels.flip(0), label_smoothing=self.label_smoothing)
            loss = share * loss + (1 - share) * other
        return loss

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _draw_share(self) -> float:
        """Draws the share of an image in its mixture from Beta(mixup, mixup): a function of seed and step."""
        rng = np.random.default_rng((self.seed, 2, int(self.steps)))
        self.steps += 1
        return float(rng.beta(self.mixup, self.mixup))


def finetune(
    folder: Path,
    validation: Path | None,
    output: Path,
    recipe: FinetuningRecipe,
    context: DistributedContext,
    progress: TrainingProgress,
    resume: bool,
) -> Path:
    """Trains a classifier, or goes on training it, and leaves its weights in `output`.

    Args:
        folder: a folder of classes.
        validation: a folder of the same classes to measure accuracy on; by default a share of `folder` is held out.
        output: the run's folder; it is made if it does not exist.
        recipe: the options; those of a resumed run come from `restore_finetuning`.
        context: this process among the others.
        progress: shows how far the run is.
        resume: go on with the run in `output`.

    Returns:
        The file of weights, which can be served.

    Raises:
        RunError: the run cannot be begun or resumed.
        NoImages, ClassFolderError: there is no image to train on.
        WeightsError: the weights cannot be read.
        Interrupted, DivergedError, OSError: as `Trainer.fit`.
    """
    name = recipe.name or output.absolute().name
    return run_session(
        lambda: FinetuningTask(folder, validation, name, recipe, context), output, recipe, context, progress, resume
    )


class FinetuningTask(Task):
    """An encoder with a classification head; the reports are loss and accuracy on held-out images."""

    def __init__(
        self, folder: Path, validation: Path | None, name: str, recipe: FinetuningRecipe, context: DistributedContext
    ) -> None:
        """Finds the images, reads the weights and makes the classifier, which is to be served under `name`.

        Raises:
            RunError, NoImages, ClassFolderError, WeightsError: as `finetune`.
        """
        if recipe.frozen and recipe.batch_size // context.world_size < 2:
            raise RunError("--batch-size leaves a process one image, of which --frozen cannot take mean and variance")
        split = split_images(folder, validation, recipe.validation_share, recipe.seed)
        split.log_skipped()
        require_readable_classes(split.training)
        source = locate_named(recipe.weights)
        weights = load(source.path, heads=recipe.heads)
        weights.log_notes(source.name)
        self._start = start = starting_point(weights, recipe, name)
        require_pool(start.config, recipe.pool)
        self.dataset = ImageDataset(split.training.paths, split.training.labels, recipe.max_pixels)
        self.images = split.images | {"weights": source.digest}
        self.description = split.description
        self.augmentation = Augmentation(start.config, start.preprocessing, recipe.crop_scale, 0, "random")
        model = without_decoder(start).build()
        if not recipe.frozen:
            unfreeze(model)
        head = LinearHead(start.config.embed_dim, len(split.training.classes), normalised=recipe.frozen)
        self.objective = Finetuning(model, start.preprocessing, head, recipe).to(context.device).train()
        groups = layer_decay_groups(
            self.objective.named_parameters(), recipe.weight_decay, start.config.depth, recipe.layer_decay
        )
        self.optimiser = adamw(groups, FINETUNING_BETAS)
        self.measures = MEASURES if split.validation else ()
        self.report_minutes = recipe.validation_minutes
        self._frozen = recipe.frozen
        self._head_config = HeadConfig(pool=recipe.pool, classes=split.training.classes)
        self._device = context.device
        threads = recipe.workers or context.decode_threads
        self._validation = split.validation and Validation(split.validation, threads, recipe.max_pixels)
        self._validated_step = 0
        self._measurement = ""

    def checkpoint(self, state: Mapping[str, Tensor]) -> Checkpoint:
        """The encoder with its trained head; a frozen encoder is that of the start, decoder included."""
        head = Head(self._head_config, *fold_batch_norm(_strip_prefix(state, HEAD)))
        if self._frozen:
            return replace(self._start, heads=replace(self._start.heads, head=head))
        tensors = {name: tensor.float().cpu() for name, tensor in _strip_prefix(state, MODEL).items()}
        return replace(self._start, tensors=tensors, heads=Heads(head))

    def report(self, step: int, checkpoint: Checkpoint, run: Run, progress: TrainingProgress) -> str:
        """Measures loss and accuracy, once for each step."""
        if not self._validation or step == self._validated_step:
            return self._measurement
        self._validated_step = step
        assert checkpoint.heads.head is not None
        result = self._validation.measure(checkpoint, checkpoint.heads.head, self._device)
        run.log({"step": step, **dict(zip(MEASURES, (result.loss, result.accuracy), strict=True))})
        self._measurement = f"val_accuracy {result.accuracy:.4f}"
        progress.say(f"step {step}: {result.sentence}")
        return self._measurement


def starting_point(weights: Checkpoint, recipe: FinetuningRecipe, name: str) -> Checkpoint:
    """The model before its first step, at the recipe's image size; only beside a frozen encoder it keeps its decoder.

    Raises:
        RunError: the model cannot have that image size.
    """
    try:
        model = weights.build(recipe.image_size)
    except ValueError as error:
        raise RunError(f"--image-size does not fit the weights: {first_sentence(error)}") from error
    # Whitening and memory bank describe the vectors of one encoder at one image size.
    keeps_vectors = recipe.frozen and model.config.image_size == weights.config.image_size
    start = Checkpoint(
        model.config.model_copy(update={"name": name}),
        weights.preprocessing,
        "mae-serve",
        dict(model.state_dict()),
        recipe.license or weights.license,
        replace(weights.heads, head=None) if keeps_vectors else Heads(),
    )
    return start if recipe.frozen else without_decoder(start)


def require_pool(config: MAEConfig, pool: Pooled) -> None:
    """Raises RunError unless a model gives this pooled vector."""
    if pool not in pools_of(config):
        raise RunError(f"--pool {pool}: {config.name} {why_no_cls(config)}: take mean")


def without_decoder(checkpoint: Checkpoint) -> Checkpoint:
    """The encoder alone."""
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith(DECODER_PREFIXES)}
    return replace(checkpoint, config=checkpoint.config.model_copy(update={"decoder_depth": 0}), tensors=tensors)


def restore_finetuning(
    output: Path, recipe: FinetuningRecipe, explicit: set[str], folder: Path | None, validation: Path | None
) -> tuple[FinetuningRecipe, Path, Path | None]:
    """Reads recipe, folder and validation folder of the run in `output`, for resuming it.

    Args:
        output: the run's folder.
        recipe: the options of the command that resumes it.
        explicit: names of the options in `recipe` that the user gave.
        folder: images to take instead of the run's folder, if they have moved.
        validation: the same for the held-out images.

    Raises:
        RunError: there is no run, an option would change it, or images or weights are not those of before.
    """
    restored, images = restore_recipe(output, recipe, explicit)
    folder = folder or Path(images["folders"][0])
    held_out: Mapping[str, Any] | None = images["validation"]
    if validation is None and held_out is not None:
        validation = Path(held_out["folders"][0])
    split = split_images(folder, validation, restored.validation_share, restored.seed)
    now = split.images
    require_same_images(output, images, now)
    if "classes" not in images and folder_names(folder, split.training.paths) != split.training.classes:
        raise RunError(f"{output} was begun by a version that took folders inside a class for classes: begin it anew")
    if (held_out is None) != (now["validation"] is None):
        raise RunError(f"{output} was begun with other images held out")
    if held_out is not None:
        require_same_images(output, held_out, now["validation"])
    if locate_named(restored.weights).digest != images["weights"]:
        raise RunError(f"{output} was begun with other weights than those that are now at {restored.weights}")
    return restored, folder, validation


def folder_names(folder: Path, paths: Iterable[str]) -> tuple[str, ...]:
    """The names of the innermost folders of images, relative to `folder`, sorted: the classes of earlier versions."""
    return tuple(sorted({Path(path).parent.relative_to(folder).as_posix() for path in paths}))


def _strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one part of the objective, under that part's own names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
