"""What an evaluation is asked to do."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EvalConfig(BaseModel):
    """What shapes the figures."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    limit: int | None = Field(default=None, gt=0)
    """Images of a folder, drawn by the seed, for a quick look; all if none."""
    seed: int = Field(default=0, ge=0, lt=2**53)
    """Of draws, of the split and, with an image's number added, of masks."""
    test_share: float = Field(default=0.3, gt=0, lt=1)
    """Share of each class that is measured on if there is no folder to train on."""
    neighbours: int = Field(default=20, gt=0)
    """How many neighbours vote."""
    probe_iterations: int = Field(default=200, gt=0)
    """Most iterations of a linear probe's solver."""
    sheet_images: int = Field(default=6, gt=0)
    """Images on the sheet."""
