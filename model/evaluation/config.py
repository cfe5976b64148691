"""Options of an evaluation."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from model.evaluation.probe import PROBE_ITERATIONS


class EvalConfig(BaseModel):
    """Options that shape the figures of an evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    limit: int | None = Field(default=None, gt=0)
    """Images per folder, drawn by the seed, for a quick look; by default all images."""
    seed: int = Field(default=0, ge=0, lt=2**53)
    """Seed of draws, of the split and, with an image's number added, of masks."""
    test_share: float = Field(default=0.3, gt=0, lt=1)
    """Share of each class to measure on if there is no folder to train on."""
    neighbours: int = Field(default=20, gt=0)
    """Number of nearest neighbours that vote."""
    probe_iterations: int = Field(default=PROBE_ITERATIONS, gt=0)
    """Largest number of iterations of a linear probe's solver."""
    sheet_images: int = Field(default=6, gt=0)
    """Images on the sheet."""
