"""What an evaluation found."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from model.masking import Strategy


class Frozen(BaseModel):
    """Facts."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Counts(Frozen):
    """Images that figures rest on."""

    train: int
    """Fitted on."""
    measured: int
    """Measured on."""
    classes: int
    split: str
    """How the two were told apart."""
    broken: tuple[str, ...]
    """What could not be used, with the reason."""


class Neighbours(Frozen):
    """Share of images whose class the vote of the nearest neighbours tells."""

    raw: float
    centred: float
    """The mean of the training vectors subtracted."""
    whitened: float
    """PCA whitening fitted on the training vectors."""


class LinearProbe(Frozen):
    """Share of images whose class logistic regression tells."""

    accuracy: float
    iterations: int
    converged: bool


class Classification(Frozen):
    """How well vectors of one kind tell classes."""

    features: Literal["cls", "mean", "thumbnail"]
    keep: float
    """Share of the patches that was embedded."""
    dim: int
    knn: Neighbours
    linear: LinearProbe


class Reconstructed(Frozen):
    """How well removed patches are painted; means over the images."""

    strategy: Strategy
    mask_ratio: float
    loss: float
    """Mean squared error over the removed patches, in what the decoder predicts: standardised pixels, or pixels
    normalised within each patch."""
    psnr_db: float
    """Of the composite: the visible patches, and the removed ones as painted."""
    ssim: float
    """Of the composite."""


class Evaluation(Frozen):
    """All figures of one model."""

    model: str
    """Name and hash of the weights."""
    backend: str
    precision: str
    neighbours: int
    seed: int
    norm_pix_loss: bool
    """Whether losses are in pixels normalised within each patch."""
    images: Counts
    largest_class: float
    """What naming the largest training class every time would score."""
    classification: tuple[Classification, ...]
    """The vectors, and last the thumbnails they are compared with."""
    reconstruction: tuple[Reconstructed, ...]
    """Empty without a decoder."""
