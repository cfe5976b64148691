"""What is asked of every image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

from model.arrays import Indices
from model.checkpoints.heads import pools_of
from model.checkpoints.native import Pooled
from model.config import MAEConfig
from model.masking import Strategy, choose_visible, random_visible, visible_count

KEEPS = (1.0, 0.5, 0.25)
"""Shares of the patches that are embedded."""


class Mask(NamedTuple):
    """How patches are removed."""

    strategy: Strategy
    ratio: float


MASKS = (Mask("random", 0.5), Mask("random", 0.75), Mask("random", 0.9), Mask("block", 0.75), Mask("grid", 0.75))
SHOWN = Mask("random", 0.75)
"""The one on sheets."""


@dataclass(frozen=True)
class EvalSpec:
    """Shares to embed and masks to reconstruct; each image has its own patches, drawn by `seed` plus its number."""

    grid: int
    seed: int
    pools: tuple[Pooled, ...]
    keeps: tuple[float, ...] = ()
    masks: tuple[Mask, ...] = ()

    @classmethod
    def of(cls, config: MAEConfig, seed: int, reconstructs: bool) -> Self:
        """All of them, but for shares that would leave none or all of a small grid's patches."""
        n = config.num_patches
        masks = [mask for mask in MASKS if reconstructs and 0 < visible_count(n, mask.ratio) < n]
        return cls(config.grid, seed, pools_of(config), tuple(keep for keep in KEEPS if int(n * keep)), tuple(masks))

    def kept(self, keep: float, number: int) -> Indices:
        """The patches of image `number` to embed, int32 [K]."""
        return random_visible(self.grid, keep, self.seed + number)

    def visible(self, mask: Mask, number: int) -> Indices:
        """The patches of image `number` to reconstruct from, int32 [K]."""
        return choose_visible(mask.strategy, self.grid, mask.ratio, self.seed + number)
