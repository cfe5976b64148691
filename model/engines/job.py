"""A conversion, as the parent process asks for it and the child process answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from model.checkpoints.errors import WeightsError
from model.config import MAEConfig, Preprocessing
from model.engines.base import EngineBuildError, Precision, TensorRTError

FAILURES: dict[str, type[Exception]] = {"weights": WeightsError, "tensorrt": TensorRTError, "build": EngineBuildError}
"""What the child process names, the narrower ones first."""


@dataclass(frozen=True)
class Calibration:
    """Photographs to quantise by."""

    paths: tuple[str, ...]
    digest: str
    """SHA-256 over their bytes, hexadecimal."""


@dataclass(frozen=True)
class ModelSpec:
    """Which model: a weights file or folder, and what the operator says about it."""

    path: str
    preset: str | None = None
    norm_pix_loss: bool | None = None
    image_size: int | None = None
    preprocess: dict[str, Any] | None = None
    """Fields of `Preprocessing` that replace the checkpoint's own."""


@dataclass(frozen=True)
class LoadedModel:
    """What is known of a model once its checkpoint has been read."""

    config: MAEConfig
    preprocessing: Preprocessing
    layout: str
    license: str | None


@dataclass(frozen=True)
class ConversionJob:
    """What to make of a model."""

    model: ModelSpec
    target: Literal["openvino", "tensorrt"]
    precision: Precision = "fp32"
    """Of the graphs; OpenVINO chooses its own when they are loaded, but for int8."""
    most: int = 0
    """The largest batch that TensorRT builds for."""
    photographs: Calibration | None = None
    """What int8 is calibrated on."""
