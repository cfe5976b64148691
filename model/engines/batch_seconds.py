"""Seconds of batches by size, measured on this kind of CPU. From them follows where a larger batch pays."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Shape = Literal["embed whole", "embed quarter", "reconstruct quarter"]
"""An operation with all patches visible, or with a quarter of them. A request counts as the shape nearest to it."""


class BatchSeconds(BaseModel):
    """Seconds of batches of one shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lone: float
    """Seconds of one image on one lane while the other lanes are idle."""
    lanes: dict[int, float]
    """Seconds of one batch on every lane at once, by batch size; has size 1."""
    joined: dict[int, float]
    """Seconds of one batch on the joined lane, by batch size; empty for an engine without a joined lane."""


class BatchCurves(BaseModel):
    """The measured seconds of an engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shapes: dict[Shape, BatchSeconds]

    def of(self, operation: Literal["embed", "tokens", "reconstruct"], visible: int, num_patches: int) -> BatchSeconds:
        """The seconds of the shape nearest to an operation with `visible` of `num_patches` patches visible."""
        if operation == "reconstruct" and "reconstruct quarter" in self.shapes:
            return self.shapes["reconstruct quarter"]
        return self.shapes["embed whole" if 2 * visible > num_patches else "embed quarter"]
