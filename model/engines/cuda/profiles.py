"""Optimisation profiles: the sizes that TensorRT tunes a graph for. A batch runs under the first that holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.config import MAEConfig
from model.masking import visible_count

Range = tuple[int, int, int]
"""Smallest, optimal (tuned for) and largest size."""
MASK_RATIO = 0.75


@dataclass(frozen=True)
class Profile:
    """A range of batch sizes and of visible patches."""

    batch: Range
    visible: Range

    def holds(self, batch: int, visible: int) -> bool:
        """Whether a batch of `batch` images with `visible` patches each fits."""
        return self.batch[0] <= batch <= self.batch[2] and self.visible[0] <= visible <= self.visible[2]

    def shapes(self, *dims: int | str) -> dict[str, tuple[int, ...]]:
        """TensorRT's three shapes of an input; `dims` are sizes, or "B", "K" and "1+K"."""
        keys = ("min_shape", "opt_shape", "max_shape")
        return {key: tuple(self._size(dim, end) for dim in dims) for end, key in enumerate(keys)}

    def _size(self, dim: int | str, end: int) -> int:
        sizes: dict[Any, int] = {"B": self.batch[end], "K": self.visible[end], "1+K": 1 + self.visible[end]}
        return sizes.get(dim) or int(dim)


def encoder_profiles(config: MAEConfig, max_batch_size: int) -> tuple[Profile, ...]:
    """Profiles for a single image, a batch with a quarter of the patches visible, and a batch of whole images."""
    n, quarter = config.num_patches, usual_visible(config)
    batch = (1, max_batch_size, max_batch_size)
    batches = (Profile(batch, (1, quarter, quarter)), Profile(batch, (1, n, n)))
    return batches if max_batch_size == 1 else (Profile((1, 1, 1), (1, n, n)), *batches)


def padded_profiles(config: MAEConfig, max_batch_size: int) -> tuple[Profile, ...]:
    """The profiles of batches among `encoder_profiles`: a single image is never padded."""
    return encoder_profiles(config, max_batch_size)[-2:]


def decoder_profiles(config: MAEConfig, max_batch_size: int) -> tuple[Profile, ...]:
    """Profiles for a single image and for a batch: the decoder works on all N patches; K matters in one layer."""
    n, quarter = config.num_patches, usual_visible(config)
    batch = Profile((1, max_batch_size, max_batch_size), (1, quarter, n))
    return (batch,) if max_batch_size == 1 else (Profile((1, 1, 1), (1, quarter, n)), batch)


def usual_visible(config: MAEConfig) -> int:
    """K at the paper's mask ratio, which is `/reconstruct`'s default."""
    return max(1, visible_count(config.num_patches, MASK_RATIO))
