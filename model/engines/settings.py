"""The settings of an engine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from model.config import AttentionHeads
from model.engines.base import Backend, Precision


class EngineSettings(BaseModel):
    """The settings that concern the engine; None leaves the choice to the code that builds it.

    The service's settings inherit them, and so do the options of its commands: there is no second list.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    model: str | None = None
    """Preset (mae_tiny … mae_huge, resnet_tiny): which packaged weights to serve, or what a foreign checkpoint is."""
    weights: str | None = None
    """Checkpoint file or folder, hf:ORG/NAME, or hf:ORG/NAME/FILE.pth; the packaged model if none."""
    heads: AttentionHeads | None = None
    """Attention heads of the encoder, or of encoder and decoder (12,16), for a checkpoint that does not say."""
    norm_pix_loss: bool | None = None
    """Whether the decoder predicts pixels normalised within each patch, for a checkpoint that does not say."""
    image_size: int | None = Field(default=None, gt=0)
    """Side of the square that the model sees, in pixels, a multiple of the patch; the model's own if none."""
    preprocess: dict[str, Any] | None = None
    """JSON that replaces parts of the model's preprocessing: resize, crop_fraction, filter, mean, std."""
    backend: Backend = "auto"
    """Engine: auto, tensorrt, openvino or torch."""
    precision: Precision | Literal["auto"] = "auto"
    """Arithmetic: fp32, bf16, fp16, int8 (OpenVINO), or auto: measured by OpenVINO."""
    lanes: int | None = Field(default=None, gt=0)
    """Batches that run at once; by default one per CPU for openvino, two on a GPU."""
    joined_lane: Literal["auto", "on", "off"] = "auto"
    """A lane of all lanes' threads for lone images, by openvino; auto: where a twentieth of the memory holds it."""
    max_batch: int | None = Field(default=None, gt=0, le=4096)
    """Largest number of images per batch; by default measured for openvino, 64 on a GPU, 8 for torch on a CPU."""
    cuda_graphs: bool | None = None
    """Record the usual batches as CUDA graphs, on a GPU; by default no for TensorRT, and for torch if it is faster."""
    compile_timeout_s: float = Field(default=180, ge=0)
    """Seconds that torch.compile may delay the start, where torch serves on a GPU; 0: it is not tried."""
    parity_cosine: float | None = Field(default=None, ge=-1, le=1)
    """Least centred cosine of embeddings against eager float32; 0.999999 in fp32, 0.99 (mean) in int8, else 0.999."""
    parity_psnr_db: float | None = Field(default=None, ge=0, le=99)
    """Least PSNR of reconstructions against eager float32; by default 60 dB in fp32, 30 in int8, else 40."""
    parity_loss: float | None = Field(default=None, ge=0)
    """Largest relative difference of the loss from eager float32; by default 0.001 in fp32, 0.05 in int8, else 0.02."""
    engine_cache: Path = Field(default_factory=lambda: _cache_home() / "mae-serve")
    """Folder for compiled engines."""

    @field_validator("preprocess", mode="before")
    @classmethod
    def _parse_json(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value


def _cache_home() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
