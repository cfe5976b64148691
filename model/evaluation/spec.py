"""The specification of an evaluation: the shares of patches to embed and the masks to reconstruct from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

from model.arrays import Indices
from model.checkpoints.heads import pools_of
from model.checkpoints.native import Pooled
from model.config import MAEConfig
from model.masking import Strategy, choose_visible, random_visible, visible_count

KEEPS = (1.0, 0.5, 0.25)
"""Shares of the patches to embed."""


class Mask(NamedTuple):
    """A way to remove patches."""

    strategy: Strategy
    ratio: float


MASKS = (Mask("random", 0.5), Mask("random", 0.75), Mask("random", 0.9), Mask("block", 0.75), Mask("grid", 0.75))
SHEET_MASK = Mask("random", 0.75)
"""The mask of the images on a sheet."""


@dataclass(frozen=True)
class EvalSpec:
    """Shares to embed and masks to reconstruct from.

    Each image has its own visible patches, drawn by `seed` plus the image's number.
    """

    grid: int
    seed: int
    pools: tuple[Pooled, ...]
    keeps: tuple[float, ...] = ()
    masks: tuple[Mask, ...] = ()

    @classmethod
    def for_model(cls, config: MAEConfig, seed: int, reconstruct: bool) -> Self:
        """All shares and masks, without those that would leave none or all of the patches of a small grid."""
        n = config.num_patches
        masks = [mask for mask in MASKS if reconstruct and 0 < visible_count(n, mask.ratio) < n]
        return cls(config.grid, seed, pools_of(config), tuple(keep for keep in KEEPS if int(n * keep)), tuple(masks))

    def visible_to_embed(self, keep: float, number: int) -> Indices:
        """Indices of the patches of image `number` to embed, int32 [K]."""
        return random_visible(self.grid, keep, self.seed + number)

    def visible_to_reconstruct(self, mask: Mask, number: int) -> Indices:
        """Indices of the patches of image `number` to reconstruct from, int32 [K]."""
        return choose_visible(mask.strategy, self.grid, mask.ratio, self.seed + number)
