"""A conversion: what the parent process and the child process tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from model.checkpoints.errors import WeightsError
from model.config import MAEConfig, Preprocessing
from model.engines.base import EngineBuildError, Precision, TensorRTError

FAILURES: dict[str, type[Exception]] = {"weights": WeightsError, "tensorrt": TensorRTError, "build": EngineBuildError}
"""How the child process names errors; subclasses come before their base classes."""


MIN_PHOTOGRAPHS = 24
"""The least that int8 can be calibrated on."""


@dataclass(frozen=True)
class Calibration:
    """The photographs that int8 is calibrated on."""

    paths: tuple[str, ...]
    digest: str
    """SHA-256 over their bytes, hexadecimal."""


@dataclass(frozen=True)
class ModelSpec:
    """A model: a weights file or folder, and what the operator says about it."""

    path: str
    preset: str | None = None
    norm_pix_loss: bool | None = None
    image_size: int | None = None
    preprocess: dict[str, Any] | None = None
    """Fields of `Preprocessing` that replace the checkpoint's own."""


@dataclass(frozen=True)
class LoadedModel:
    """A model's properties, as its checkpoint and the operator state them."""

    config: MAEConfig
    preprocessing: Preprocessing
    layout: str
    license: str | None


@dataclass(frozen=True)
class ConversionJob:
    """What the child process is to make of a model."""

    model: ModelSpec
    target: Literal["openvino", "tensorrt"]
    precision: Precision = "fp32"
    """The precision of the graphs. For OpenVINO it matters only if it is int8: all else is decided on loading."""
    max_batch_size: int = 0
    """The largest batch that TensorRT builds for."""
    photographs: Calibration | None = None
    """The photographs that int8 is calibrated on; None for other precisions."""
