"""The results of an evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from model.masking import Strategy


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Counts(_Result):
    """Numbers of images behind the figures."""

    train: int
    """Images to fit on."""
    measured: int
    """Images to measure on."""
    classes: int
    """Number of classes; 0 if there are none to tell apart."""
    split: str
    """How the images to fit on and to measure on were chosen."""
    broken: tuple[str, ...]
    """Images that could not be used, with the reason."""


class Neighbours(_Result):
    """Share of images whose class the vote of the nearest neighbours gives."""

    raw: float
    """Accuracy on the vectors as they are."""
    centred: float
    """Accuracy after the mean of the training vectors is subtracted."""
    whitened: float
    """Accuracy after PCA whitening fitted on the training vectors."""


class LinearProbe(_Result):
    """Share of images whose class logistic regression gives."""

    accuracy: float
    """Top-1 accuracy."""
    iterations: int
    """Iterations that the solver took."""
    converged: bool
    """Whether the solver converged within its iterations."""


class Classification(_Result):
    """How well vectors of one kind tell the classes apart."""

    features: Literal["cls", "mean", "thumbnail"]
    """The kind of the vectors."""
    keep: float
    """Share of the patches that was embedded."""
    dim: int
    """Numbers per vector."""
    knn: Neighbours
    linear: LinearProbe


class Reconstruction(_Result):
    """How well removed patches are reconstructed; means over the images."""

    strategy: Strategy
    mask_ratio: float
    loss: float
    """Mean squared error over the removed patches, in the unit of the decoder's target: standardised pixels, or pixels
    normalised within each patch."""
    psnr_db: float
    """PSNR in dB of the composite: the visible patches, and the removed ones as reconstructed."""
    ssim: float
    """SSIM of the composite."""


class Evaluation(_Result):
    """All figures of one model."""

    model: str
    """Name and hash of the weights."""
    backend: str
    precision: str
    neighbours: int
    """Number of nearest neighbours that voted."""
    seed: int
    norm_pix_loss: bool
    """Whether losses are in pixels normalised within each patch."""
    images: Counts
    largest_class: float | None
    """Accuracy of always naming the largest training class; null without classes."""
    classification: tuple[Classification, ...]
    """The model's vectors, and last the thumbnails that they are compared with; empty without classes."""
    reconstruction: tuple[Reconstruction, ...]
    """Empty without a decoder."""
