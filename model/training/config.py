"""What a training run is asked to do: every choice that shapes the weights, and few that do not."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.checkpoints.native import Pooled
from model.config import Loss
from model.masking import Strategy

TrainingPrecision = Literal["auto", "fp32", "bf16", "fp16"]
OptimiserName = Literal["adamw", "muon"]


class TrainingConfig(BaseModel):
    """How long a run is and how its learning rate goes; one of `epochs`, `steps` and `minutes` bounds it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the images."""
    steps: int | None = Field(default=None, gt=0)
    """Optimiser steps."""
    minutes: float | None = Field(default=None, gt=0)
    """Minutes of training; the schedule then follows the clock, so that only data order is repeatable."""
    batch_size: int = Field(default=64, gt=0)
    """Images of one step, over all processes."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    min_lr: float = Field(default=0, ge=0)
    """Learning rate at the end of the cosine."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the run in which the learning rate rises."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay of matrices; biases, norms and tokens have none."""
    clip: float = Field(default=1.0, ge=0)
    """Longest gradient, by its norm; 0 for any."""
    seed: int = Field(default=0, ge=0)
    """Of initialisation, data order, crops and masks."""
    precision: TrainingPrecision = "auto"
    """Arithmetic of the products: auto is bf16 on CUDA, fp32 on a processor."""
    compile: bool | None = None
    """Whether torch.compile makes the step; by default on CUDA alone. It pays in long runs and needs a C++ compiler."""
    threads: int | None = Field(default=None, gt=0)
    """Threads of arithmetic of one process; by default its share of the processors."""
    workers: int | None = Field(default=None, gt=0)
    """Threads of one process that decode images; by default one, on CUDA its share of the processors."""
    log_steps: int = Field(default=10, gt=0)
    """Steps in one row of metrics.csv."""
    save_minutes: float = Field(default=5, gt=0)
    """Minutes from one checkpoint to the next."""

    @model_validator(mode="after")
    def _bounded_once(self) -> Self:
        if sum(bound is not None for bound in (self.epochs, self.steps, self.minutes)) > 1:
            raise ValueError("epochs, steps and minutes exclude each other")
        return self


class Recipe(TrainingConfig):
    """A pretraining run (He et al. 2021, section 3 and appendix A.1)."""

    model: str = "mae_tiny"
    """Preset of the model to train."""
    init: str | None = None
    """Weights to start from: mae_tiny (the packaged ones) or any checkpoint that can be served; a decoder
    that it lacks is made anew."""
    name: str | None = None
    """Name to serve the model under; by default that of the run's folder."""
    license: str | None = None
    """Licence of the weights, kept in their file."""
    image_size: int | None = Field(default=None, gt=0)
    """Side of the square in pixels; the preset's if none."""
    decoder_depth: int | None = Field(default=None, gt=0)
    """Blocks of the decoder, of a resnet's those before the upsampling; the preset's if none."""
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches that is removed."""
    strategy: Strategy = "random"
    """How patches are chosen: random, block or grid."""
    loss: Loss = "mse"
    """Error of a removed patch: mse or cosine."""
    norm_pix_loss: bool = False
    """Whether the target is normalised within each patch."""
    optimiser: OptimiserName = "adamw"
    """adamw, or muon for the matrices inside the blocks: more arithmetic a step, fewer steps."""
    muon_scale: float = Field(default=2.0, gt=0)
    """Learning rate of the matrices that muon takes, in multiples of that of the rest."""
    crop_scale: float = Field(default=0.2, gt=0, le=1)
    """Least share of an image that a random crop keeps."""
    ema: float = Field(default=0, ge=0, lt=1)
    """Decay per step of an exponential moving average of the weights, which is then what is kept; 0 for none."""
    preview_minutes: float = Field(default=10, gt=0)
    """Minutes from one sheet of reconstructions to the next."""
    preview_images: int = Field(default=6, ge=0)
    """Images on the sheet."""


class FinetuningRecipe(TrainingConfig):
    """A fine-tuning run or a linear probe (He et al. 2021, appendix A.1 and A.2)."""

    weights: str | None = None
    """Weights to start from: any checkpoint that can be served; by default the packaged ones."""
    name: str | None = None
    """Name to serve the model under; by default that of the run's folder."""
    license: str | None = None
    """Licence of the weights, kept in their file; by default that of the weights to start from."""
    image_size: int | None = Field(default=None, gt=0)
    """Side of the square in pixels; by default that of the weights."""
    frozen: bool = False
    """Whether the head alone learns (linear probing); the encoder and a decoder then stay as they are."""
    pool: Pooled = "mean"
    """What the head sees: the mean of the patch tokens, or the cls token."""
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    """Learning rate of a block, as a share of that of the block above it."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the target that is spread over all classes."""
    mixup: float = Field(default=0, ge=0)
    """Images are mixed in pairs, by shares from Beta(mixup, mixup); 0 for none."""
    crop_scale: float = Field(default=0.2, gt=0, le=1)
    """Least share of an image that a random crop keeps."""
    validation_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of each class that is held out to measure accuracy on, unless a folder is given for that; 0 for none."""
    validation_minutes: float = Field(default=5, gt=0)
    """Minutes from one measurement to the next; there is one at the end too."""
