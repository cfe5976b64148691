"""Masking: which patches stay visible, by random, block or grid strategy (He et al. 2021, section 3 and figure 6).

The module needs NumPy alone, so that serving needs no torch. Every draw comes from the raw 64-bit outputs of PCG64,
which NumPy keeps frozen across versions (its shuffles and integer draws are not), so a seed means the same mask for
good.

A mask is written as visible indices: the row-major indices of the visible patches, ascending, int32 [K]. Written as N
flags, 1 means removed and 0 kept, as upstream.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from model.arrays import Bytes, Indices

Strategy = Literal["random", "block", "grid"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
MAX_SEED = 2**64 - 1
PAD = -1
"""The index that means no patch. It pads the visible indices of images with fewer visible patches than others of their
batch."""


class MaskError(ValueError):
    """A mask that is not possible: it leaves nothing or everything visible, or names a patch that does not exist."""


def choose_visible(strategy: Strategy, grid: int, mask_ratio: float, seed: int) -> Indices:
    """Chooses the K = int(N (1 - mask_ratio)) patches that stay visible, int32 [K].

    Raises:
        MaskError: the ratio removes none or all of the N = grid * grid patches.
    """
    return _require_mixed(_draw(strategy, grid, visible_count(grid**2, mask_ratio), seed), grid**2)


def random_visible(grid: int, keep: float, seed: int) -> Indices:
    """Chooses a random K = int(N keep) of the patches, int32 [K]; all of them for `keep` 1.

    Raises:
        MaskError: fewer than one patch would be kept.
    """
    if keep >= 1:
        return all_indices(grid**2)
    count = int(grid**2 * keep)
    if count < 1:
        raise MaskError(f"keep={keep} leaves none of the {grid**2} patches")
    return _draw("random", grid, count, seed)


def visible_without(removed: Iterable[int], num_patches: int) -> Indices:
    """The patches that stay visible when the patches `removed` (row-major indices) are removed, int32 [K].

    Raises:
        MaskError: an index is outside 0..N-1, or nothing or everything is removed.
    """
    return _require_mixed(np.flatnonzero(~_flags(removed, num_patches)).astype(np.int32), num_patches)


def visible_inside(region: Iterable[int], num_patches: int) -> Indices:
    """The patches of a region (row-major indices in any order) as visible indices, int32 [K]; it may be all of them.

    Raises:
        MaskError: an index is outside 0..N-1, or there is none.
    """
    inside = np.flatnonzero(_flags(region, num_patches)).astype(np.int32)
    if len(inside) == 0:
        raise MaskError(f"none of the {num_patches} patches is inside")
    return inside


def passes_to_cover(num_patches: int, mask_ratio: float) -> int:
    """The least number of passes in which each patch is removed at least once: ceil(N / R), of which R are removed.

    Raises:
        MaskError: the ratio removes none or all of the patches.
    """
    _require_mixed(all_indices(visible := visible_count(num_patches, mask_ratio)), num_patches)
    return math.ceil(num_patches / (num_patches - visible))


def complementary_visible(grid: int, mask_ratio: float, passes: int, seed: int) -> list[Indices]:
    """Chooses the visible patches of several passes, int32 [K] each, so that each patch is removed at least once.

    The passes come in rounds of `passes_to_cover`. Each round puts the patches into a random order of its own, and its
    passes remove evenly spaced stretches of this order, which goes on at its start where it ends.

    Raises:
        MaskError: the ratio removes none or all of the patches, or there are too few passes for it.
    """
    num_patches, kept = grid**2, visible_count(grid**2, mask_ratio)
    in_round = passes_to_cover(num_patches, mask_ratio)
    if passes < in_round:
        raise MaskError(f"mask_ratio={mask_ratio} needs {in_round} passes to remove each patch at least once")
    bits, chosen = np.random.PCG64(seed), []
    for number in range(passes):
        place = number % in_round
        if place == 0:
            order = np.argsort(bits.random_raw(num_patches), kind="stable")
        # The order without the stretch that is removed: the K patches before it, in the ring.
        kept_patches = np.roll(order, kept - place * num_patches // in_round)[:kept]
        chosen.append(np.sort(kept_patches).astype(np.int32))
    return chosen


def all_indices(num_patches: int) -> Indices:
    """All indices 0..N-1, int32 [N]: the whole image is visible."""
    return np.arange(num_patches, dtype=np.int32)


def removed_flags(visible_indices: Indices, num_patches: int) -> Bytes:
    """The mask as upstream writes it, uint8 [N]: 1 = removed, 0 = kept."""
    mask = np.ones(num_patches, dtype=np.uint8)
    mask[visible_indices] = 0
    return mask


def restore_indices_for(visible_indices: Indices, num_patches: int) -> Indices:
    """The token in `[mask token, cls, visible…]` that the decoder takes for each of the N patches.

    It is the counterpart of upstream's `ids_restore`: 0 for a removed patch, 2 + k for the k-th visible one.

    Args:
        visible_indices: indices of the visible patches, int32 [B, K]; some may be `PAD`.
        num_patches: N.

    Returns:
        int32 [B, N].
    """
    tokens = np.arange(2, visible_indices.shape[1] + 2, dtype=np.int32)
    restore = np.zeros((len(visible_indices), num_patches + 1), dtype=np.int32)  # PAD, -1, writes to the last column
    np.put_along_axis(restore, visible_indices, tokens[None], axis=1)
    return np.ascontiguousarray(restore[:, :num_patches])


def visible_count(num_patches: int, mask_ratio: float) -> int:
    """K = int(N (1 - r)), upstream's `len_keep`."""
    return int(num_patches * (1 - mask_ratio))


def new_seed() -> int:
    """Draws a seed below 2**53, which JSON readers with double precision give back unchanged."""
    return secrets.randbelow(2**53)


def _draw(strategy: Strategy, grid: int, count: int, seed: int) -> Indices:
    """Draws `count` visible patches, ascending, int32 [count]."""
    bits = np.random.PCG64(seed)
    if strategy == "random":
        order = np.argsort(bits.random_raw(grid**2), kind="stable")
    elif strategy == "grid":
        order = _grid_order(bits, grid)
    else:
        return _draw_outside_blocks(bits, grid, count)
    return np.sort(order[:count]).astype(np.int32)


def _grid_order(bits: np.random.PCG64, grid: int) -> NDArray[np.intp]:
    """Patches in the order of a Bayer matrix, shifted by the seed: any prefix of the order is spread evenly.

    The first quarter is one patch of every 2 x 2, which is the paper's grid-wise sampling (figure 6); the first half is
    a chequerboard.
    """
    ranks = np.zeros((1, 1), dtype=np.int64)
    while len(ranks) < grid:
        ranks = np.block([[4 * ranks, 4 * ranks + 2], [4 * ranks + 3, 4 * ranks + 1]])
    down, right = (int(raw % len(ranks)) for raw in bits.random_raw(2))
    return np.argsort(np.roll(ranks, (down, right), axis=(0, 1))[:grid, :grid], axis=None, kind="stable")


def _draw_outside_blocks(bits: np.random.PCG64, grid: int, count: int) -> Indices:
    """Removes rectangles until `count` patches are left: block-wise masking (BEiT, Bao et al. 2021, algorithm 1).

    A rectangle has at least 16 patches (or as many as are left to remove) and an aspect ratio between 0.3 and 1 / 0.3.
    It lies around a patch that was still visible, so each one removes something. The last one stops at the exact count.
    """
    removed = np.zeros((grid, grid), dtype=bool)
    left = grid**2 - count
    while left:
        area_draw, aspect_draw, centre_draw = (int(raw >> 11) * 2.0**-53 for raw in bits.random_raw(3))
        area = min(16, left) + area_draw * (left - min(16, left))
        aspect = math.exp((2 * aspect_draw - 1) * math.log(1 / 0.3))
        height = min(grid, max(1, round(math.sqrt(area * aspect))))
        width = min(grid, max(1, round(math.sqrt(area / aspect))))
        visible = np.flatnonzero(~removed)
        row, column = divmod(int(visible[int(centre_draw * len(visible))]), grid)
        top = min(max(row - height // 2, 0), grid - height)
        start = min(max(column - width // 2, 0), grid - width)
        block = np.zeros_like(removed)
        block[top : top + height, start : start + width] = True
        newly_removed = np.flatnonzero(block & ~removed)[:left]
        removed.flat[newly_removed] = True
        left -= len(newly_removed)
    return np.flatnonzero(~removed).astype(np.int32)


def _flags(indices: Iterable[int], num_patches: int) -> NDArray[np.bool_]:
    """True for the patches `indices`, bool [N].

    Raises:
        MaskError: an index is outside 0..N-1.
    """
    flags = np.zeros(num_patches, dtype=bool)
    for index in indices:
        if not 0 <= index < num_patches:
            raise MaskError(f"there is no patch {index}: they are numbered 0 to {num_patches - 1}")
        flags[index] = True
    return flags


def _require_mixed(visible_indices: Indices, num_patches: int) -> Indices:
    """Returns the indices unless they leave no patch visible or none removed."""
    if len(visible_indices) == 0:
        raise MaskError(f"all {num_patches} patches would be removed: nothing is left to reconstruct from")
    if len(visible_indices) == num_patches:
        raise MaskError(f"none of the {num_patches} patches would be removed: there is nothing to reconstruct")
    return visible_indices
