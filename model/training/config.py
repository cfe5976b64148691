"""The options of training runs: those that shape the weights, and a few that do not."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from model.checkpoints.native import Pooled
from model.config import AttentionHeads, Loss
from model.evaluation.probe import PROBE_ITERATIONS
from model.images.open_image import MAX_PIXELS
from model.masking import Strategy


def require_no_control_characters(name: str) -> str:
    """Returns the name of a model; answers of the service name it in a header.

    Raises:
        ValueError: it has a control character, such as a line break.
    """
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise ValueError(f"the name {name!r} has a control character")
    return name


Name = Annotated[str, AfterValidator(require_no_control_characters)]
INIT_LR = 1e-4
"""Learning rate of pretraining that starts from trained weights."""
TrainingPrecision = Literal["auto", "fp32", "bf16", "fp16"]
OptimiserName = Literal["adamw", "muon"]


class TrainingConfig(BaseModel):
    """Options of every training run; one of `epochs`, `steps` and `minutes` bounds it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the images."""
    steps: int | None = Field(default=None, gt=0)
    """Optimiser steps."""
    minutes: float | None = Field(default=None, gt=0)
    """Minutes of training; the schedule then follows the clock, so that only the data order is repeatable."""
    batch_size: int = Field(default=64, gt=0)
    """Images per step, over all processes."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    min_lr: float = Field(default=0, ge=0)
    """Learning rate at the end of the cosine."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the run in which the learning rate rises."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay of matrices; biases, norms and tokens have none."""
    clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient, which is scaled down to it; 0 for no limit."""
    seed: int = Field(default=0, ge=0)
    """Seed of initialisation, data order, crops and masks."""
    precision: TrainingPrecision = "auto"
    """Arithmetic of matrix products: auto is bf16 on CUDA, fp32 on a CPU."""
    compile: bool | None = None
    """Whether torch.compile is used; by default only on CUDA. It pays in long runs and needs a C++ compiler."""
    threads: int | None = Field(default=None, gt=0)
    """Threads per process that compute; by default its share of the CPUs."""
    workers: int | None = Field(default=None, gt=0)
    """Threads per process that decode images; by default one, on CUDA its share of the CPUs."""
    in_memory: bool = False
    """Whether all images are decoded once into the device's memory, where crops and patches are then made. Pixels
    differ by rounding, and more for images that --memory-side scales down."""
    memory_side: int | None = Field(default=None, gt=0)
    """Short side in pixels of the images in memory; by default the image size. Smaller images are not enlarged."""
    memory_mb: float = Field(default=4096, gt=0)
    """Megabytes that the images in memory may take, in each process; a run that needs more does not start."""
    max_pixels: int = Field(default=MAX_PIXELS, gt=0)
    """Largest number of pixels that an image is decoded to; larger ones are skipped."""
    log_steps: int = Field(default=10, gt=0)
    """Steps per line of metrics.csv."""
    save_minutes: float = Field(default=5, gt=0)
    """Minutes from one checkpoint to the next."""

    @property
    def has_bound(self) -> bool:
        """Whether epochs, steps or minutes bound the run."""
        return (self.epochs, self.steps, self.minutes) != (None, None, None)

    @model_validator(mode="after")
    def _require_one_bound(self) -> Self:
        if sum(bound is not None for bound in (self.epochs, self.steps, self.minutes)) > 1:
            raise ValueError("epochs, steps and minutes exclude each other")
        return self

    @model_validator(mode="after")
    def _require_images_in_memory(self) -> Self:
        if self.memory_side is not None and not self.in_memory:
            raise ValueError("--memory-side needs --in-memory")
        return self


class Recipe(TrainingConfig):
    """Options of a pretraining run (He et al. 2021, section 3 and appendix A.1)."""

    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate; by default 1e-3, or 1e-4 with --init."""
    model: str = "mae_tiny"
    """Preset of the model to train."""
    init: str | None = None
    """Weights to start from: mae_tiny (the packaged ones) or any checkpoint that can be served; a missing
    decoder is made anew."""
    heads: AttentionHeads | None = None
    """Attention heads of the weights to start from, as 12, or 12,16 for encoder and decoder, if they do not say."""
    name: Name | None = None
    """Name to serve the model under; by default that of the run's folder."""
    license: str | None = None
    """Licence of the weights, stored in their file."""
    image_size: int | None = Field(default=None, gt=0)
    """Side of the square in pixels; by default that of the preset."""
    decoder_depth: int | None = Field(default=None, gt=0)
    """Blocks of the decoder (of a resnet, those before the upsampling); by default those of the preset."""
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches that is removed."""
    strategy: Strategy = "random"
    """How patches are chosen: random, block or grid."""
    loss: Loss = "mse"
    """Loss of a removed patch: mse or cosine."""
    norm_pix_loss: bool = False
    """Whether the target is normalised within each patch."""
    optimiser: OptimiserName = "adamw"
    """adamw, or muon for the matrices inside the blocks: more arithmetic per step, fewer steps."""
    muon_scale: float = Field(default=2.0, gt=0)
    """Learning rate of the matrices that muon updates, in multiples of that of the rest."""
    crop_scale: float = Field(default=0.2, gt=0, le=1)
    """Least share of an image that a random crop keeps."""
    ema: float = Field(default=0, ge=0, lt=1)
    """Decay per step of an exponential moving average of the weights, which then replaces them; 0 for none."""
    preview_minutes: float = Field(default=10, gt=0)
    """Minutes from one sheet of reconstructions to the next."""
    preview_images: int = Field(default=6, ge=0)
    """Images on the sheet."""
    validation_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the images that is held out to measure the loss on, at most 1024 images; 0 for none. The loss is
    measured before the first step, with every sheet, and at the end."""

    @model_validator(mode="before")
    @classmethod
    def _lower_rate_of_trained_weights(cls, options: Any) -> Any:
        if isinstance(options, dict) and options.get("init") is not None:
            return {"lr": INIT_LR, **options}
        return options

    @model_validator(mode="after")
    def _require_weights_for_heads(self) -> Self:
        if self.heads is not None and self.init is None:
            raise ValueError("heads belong to the weights that init names, and there are none")
        return self


class FinetuningRecipe(TrainingConfig):
    """Options of a fine-tuning run or a linear probe (He et al. 2021, appendix A.1 and A.2)."""

    weights: str | None = None
    """Weights to start from: any checkpoint that can be served; by default the packaged ones."""
    heads: AttentionHeads | None = None
    """Attention heads of the weights to start from, as 12, or 12,16 for encoder and decoder, if they do not say."""
    name: Name | None = None
    """Name to serve the model under; by default that of the run's folder."""
    license: str | None = None
    """Licence of the weights, stored in their file; by default that of the weights to start from."""
    image_size: int | None = Field(default=None, gt=0)
    """Side of the square in pixels; by default that of the weights."""
    frozen: bool = False
    """Whether only the head learns (linear probing): it is fitted by LBFGS on one vector per image, and takes none of
    the options of training by steps. Encoder and decoder stay as they are."""
    probe_iterations: int = Field(default=PROBE_ITERATIONS, gt=0)
    """With --frozen: largest number of iterations of the solver."""
    pool: Pooled = "mean"
    """Input of the head: the mean of the patch tokens, or the cls token."""
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    """Learning rate of a block, as a share of that of the block above it."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the target that is spread over all classes."""
    mixup: float = Field(default=0, ge=0)
    """Mixup of pairs of images, by shares from Beta(mixup, mixup); 0 for none."""
    crop_scale: float = Field(default=0.2, gt=0, le=1)
    """Least share of an image that a random crop keeps."""
    validation_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of each class that is held out to measure accuracy on, if no folder is given for that; 0 for none."""
    validation_minutes: float = Field(default=5, gt=0)
    """Minutes from one measurement of accuracy to the next; there is one at the end too."""

    @property
    def is_fitted(self) -> bool:
        """Whether the head is fitted on vectors: a frozen run with a bound was begun by earlier versions, by steps."""
        return self.frozen and not self.has_bound


PROBE_OPTIONS = frozenset(
    (
        "weights",
        "name",
        "license",
        "heads",
        "image_size",
        "max_pixels",
        "frozen",
        "pool",
        "probe_iterations",
        "validation_share",
        "seed",
        "threads",
        "workers",
        "save_minutes",
    )
)
"""The options that linear probing takes; all others belong to training by steps."""
