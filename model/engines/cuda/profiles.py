"""Optimisation profiles: for which sizes TensorRT tunes a graph, and which of them a batch runs under."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.config import MAEConfig
from model.masking import visible_count

Range = tuple[int, int, int]
"""Least, best (what is tuned for), most."""
MASK_RATIO = 0.75


@dataclass(frozen=True)
class Profile:
    """A range of batches and of visible patches."""

    batch: Range
    visible: Range

    def holds(self, batch: int, visible: int) -> bool:
        """Whether `batch` images of `visible` patches each are within."""
        return self.batch[0] <= batch <= self.batch[2] and self.visible[0] <= visible <= self.visible[2]

    def shapes(self, *dims: int | str) -> dict[str, tuple[int, ...]]:
        """TensorRT's three shapes of an input; `dims` may say "B", "K" and "1+K"."""
        keys = ("min_shape", "opt_shape", "max_shape")
        return {key: tuple(self._size(dim, place) for dim in dims) for place, key in enumerate(keys)}

    def _size(self, dim: int | str, place: int) -> int:
        sizes: dict[Any, int] = {"B": self.batch[place], "K": self.visible[place], "1+K": 1 + self.visible[place]}
        return sizes.get(dim) or int(dim)


def encoder_profiles(config: MAEConfig, most: int) -> tuple[Profile, ...]:
    """A single image, a batch seen through a quarter of its patches, a batch seen whole, for up to `most` images.

    A batch runs under the first one that holds it.
    """
    n, quarter = config.num_patches, usual_visible(config)
    batches = (Profile((1, most, most), (1, quarter, quarter)), Profile((1, most, most), (1, n, n)))
    return batches if most == 1 else (Profile((1, 1, 1), (1, n, n)), *batches)


def mixed_profiles(config: MAEConfig, most: int) -> tuple[Profile, ...]:
    """As `encoder_profiles`; a single image is never mixed with others."""
    return encoder_profiles(config, most)[-2:]


def decoder_profiles(config: MAEConfig, most: int) -> tuple[Profile, ...]:
    """A single image and a batch: the decoder sees all places, so that K counts in its first layer alone."""
    n, quarter = config.num_patches, usual_visible(config)
    batch = Profile((1, most, most), (1, quarter, n))
    return (batch,) if most == 1 else (Profile((1, 1, 1), (1, quarter, n)), batch)


def usual_visible(config: MAEConfig) -> int:
    """K at the paper's mask ratio, which is `/reconstruct`'s default."""
    return max(1, visible_count(config.num_patches, MASK_RATIO))
