"""What the operator asks of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from model.engines import parity
from model.engines.backend import Backend
from model.engines.base import ComputedPrecision, Precision


@dataclass(frozen=True)
class EngineSpec:
    """What the operator asks for; None leaves a choice to us."""

    cache: Path
    weights: str | None = None
    model: str | None = None
    norm_pix_loss: bool | None = None
    image_size: int | None = None
    preprocess: dict[str, Any] | None = None
    backend: Backend = "auto"
    precision: Precision | Literal["auto"] = "auto"
    lanes: int | None = None
    max_batch: int | None = None
    cuda_graphs: bool = False
    parity_cosine: float | None = None
    parity_psnr_db: float | None = None
    parity_loss: float | None = None
    calibrate: Path | None = None
    """Photographs to quantise by, for int8 and auto; without it, int8 needs an engine that was made before."""

    def bar(self, precision: ComputedPrecision) -> parity.Tolerance:
        """What an engine that computes in that precision must reach, whatever was asked for."""
        return parity.tolerance_for(precision, self.parity_cosine, self.parity_psnr_db, self.parity_loss)
