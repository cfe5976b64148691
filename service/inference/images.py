"""The forms in which an image of a request comes to the pipeline."""

from __future__ import annotations

from typing import NamedTuple

from model.arrays import Bytes, Indices


class VisiblePatches(NamedTuple):
    """The visible patches of an image, whose other patches the service never gets."""

    patches: Bytes
    """uint8 [K, P]."""
    visible_indices: Indices
    """int32 [K], none of them twice."""


WholeImage = bytes | Bytes
"""An encoded image, or the model's square as patches, uint8 [N, P]."""
Image = WholeImage | VisiblePatches
