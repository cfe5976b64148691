"""A conversion job: the data that the parent process and the child process exchange."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from model.checkpoints.errors import WeightsError
from model.checkpoints.heads import Head
from model.config import MAEConfig, Preprocessing
from model.engines.base import EngineBuildError, Precision, TensorRTError

FAILURES: dict[str, type[Exception]] = {"weights": WeightsError, "tensorrt": TensorRTError, "build": EngineBuildError}
"""How the child process names errors; subclasses come before their base classes."""
MIN_PHOTOGRAPHS = 24
"""The least number of photographs for int8, those held out included."""


@dataclass(frozen=True)
class Calibration:
    """The photographs for int8: those that it is calibrated on, and those held out."""

    paths: tuple[str, ...]
    digest: str
    """SHA-256 over the digests of the files, hexadecimal."""


@dataclass(frozen=True)
class ModelSpec:
    """A model: a weights file or folder, and the operator's options for it."""

    path: str
    preset: str | None = None
    norm_pix_loss: bool | None = None
    image_size: int | None = None
    heads: tuple[int, ...] | None = None
    """Attention heads, as for `model.checkpoints.checkpoint.load`."""
    preprocess: dict[str, Any] | None = None
    """Fields of `Preprocessing` that replace the checkpoint's own."""


@dataclass(frozen=True)
class LoadedModel:
    """A model's properties, as its checkpoint and the operator state them."""

    config: MAEConfig
    preprocessing: Preprocessing
    layout: str
    license: str | None
    notes: tuple[str, ...] = ()
    """See `Checkpoint.notes`."""
    head: Head | None = None
    """The classification head."""


@dataclass(frozen=True)
class ConversionJob:
    """The conversion that the child process is to do."""

    model: ModelSpec
    target: Literal["openvino", "tensorrt", "torch"]
    precision: Precision = "fp32"
    """The precision of the graphs. For OpenVINO only int8 matters: any other precision is chosen on loading."""
    max_batch_size: int = 0
    """The largest batch that TensorRT builds for, or that torch records."""
    photographs: Calibration | None = None
    """The photographs for int8; None for other precisions."""
