"""The images of a request, in the forms in which they come to the pipeline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from model.arrays import Bytes, Indices
from service.errors import ServiceError
from service.inference.timings import Timings


class VisiblePatches(NamedTuple):
    """The visible patches of an image, whose other patches the service never gets."""

    patches: Bytes
    """uint8 [K, P]."""
    visible_indices: Indices
    """int32 [K], none of them twice."""


WholeImage = bytes | Bytes
"""An encoded image, or the model's square as patches, uint8 [N, P]."""
Image = WholeImage | VisiblePatches


@dataclass
class ImageRequest:
    """The images of one request, and what bounds their way to results."""

    images: Sequence[Image]
    timings: Timings = field(default_factory=Timings)
    """Filled with the seconds of each stage."""
    deadline: float = math.inf
    """In seconds of time.monotonic(); later than that no image enters a batch."""
    skipped: dict[int, ServiceError] | None = None
    """Filled with the errors of images that are left out, by index; it may hold some already. If all images are left
    out, the error of the first is raised. None: any error of an image is raised."""
    cache_key: bytes | None = None
    """Names whose results these are. None: nothing is looked up in the cache or stored there."""

    @property
    def answered(self) -> list[int]:
        """The indexes of the images that are not left out."""
        return [index for index in range(len(self.images)) if index not in (self.skipped or ())]
