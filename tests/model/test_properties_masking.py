"""Masks of any grid, ratio and seed, and patches of any image."""

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model.images import preprocess
from model.masking import (
    MAX_SEED,
    PAD,
    STRATEGIES,
    MaskError,
    Strategy,
    choose_visible,
    complementary_visible,
    passes_to_cover,
    random_visible,
    removed_flags,
    restore_indices_for,
    visible_inside,
    visible_without,
)
from model.nn import vit

GRIDS = st.integers(1, 16)
RATIOS = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.75, 0.5, 0.9])
SEEDS = st.integers(0, MAX_SEED)


def require_indices(visible_indices: np.ndarray, count: int, num_patches: int) -> None:
    """Ascending, each once, in range, int32 [count]."""
    assert visible_indices.dtype == np.int32 and visible_indices.shape == (count,)
    assert visible_indices.tolist() == sorted(set(visible_indices.tolist()) & set(range(num_patches)))


def outputs(seed: int, count: int) -> list[int]:
    return [int(output) for output in np.random.PCG64(seed).random_raw(count)]


def removed_by_blocks(grid: int, count: int, seed: int) -> set[int]:
    """Algorithm 1 of BEiT with our draws, patch by patch: row-major indices of the patches that rectangles cover."""
    removed: set[int] = set()
    bits = np.random.PCG64(seed)
    while len(removed) < count:
        left = count - len(removed)
        area_draw, aspect_draw, place_draw = ((int(output) >> 11) / 2**53 for output in bits.random_raw(3))
        area = min(16, left) + area_draw * (left - min(16, left))
        aspect = (1 / 0.3) ** (2 * aspect_draw - 1)
        height, width = (
            min(grid, max(1, round(side))) for side in (math.sqrt(area * aspect), math.sqrt(area / aspect))
        )
        visible = [patch for patch in range(grid**2) if patch not in removed]
        row, column = divmod(visible[int(place_draw * len(visible))], grid)
        top = sorted((0, row - height // 2, grid - height))[1]
        start = sorted((0, column - width // 2, grid - width))[1]
        cells = (y * grid + x for y in range(top, top + height) for x in range(start, start + width))
        removed |= set([cell for cell in cells if cell not in removed][:left])
    return removed


@given(st.sampled_from(STRATEGIES), GRIDS, RATIOS, SEEDS)
def test_masks_of_every_strategy(strategy: Strategy, grid: int, ratio: float, seed: int) -> None:
    num_patches = grid**2
    kept = int(num_patches * (1 - ratio))  # len_keep of models_mae.py
    if kept in (0, num_patches):
        with pytest.raises(MaskError):
            choose_visible(strategy, grid, ratio, seed)
        return
    visible_indices = choose_visible(strategy, grid, ratio, seed)
    require_indices(visible_indices, kept, num_patches)
    assert visible_indices.tolist() == choose_visible(strategy, grid, ratio, seed).tolist()
    visible = set(visible_indices.tolist())
    if strategy == "random":  # argsort(noise)[:len_keep] of upstream
        noise = outputs(seed, num_patches)
        assert visible == set(sorted(range(num_patches), key=noise.__getitem__)[:kept])
    elif strategy == "grid":  # spread evenly: no 2 x 2 of the shifted Bayer matrix has two patches more than another
        side = 1 << (grid - 1).bit_length()
        if side == grid:
            down, right = (output % side for output in outputs(seed, 2))
            cells: dict[tuple[int, int], int] = {}
            for patch in range(num_patches):
                row, column = (patch // grid - down) % side // 2, (patch % grid - right) % side // 2
                cells[row, column] = cells.get((row, column), 0) + (patch in visible)
            assert max(cells.values()) - min(cells.values()) <= 1
    else:
        assert visible == set(range(num_patches)) - removed_by_blocks(grid, num_patches - kept, seed)


@given(GRIDS, st.floats(0, 1.5), SEEDS)
def test_random_patches_of_an_embedding(grid: int, keep: float, seed: int) -> None:
    count = min(grid**2, int(grid**2 * keep))
    if count == 0:
        with pytest.raises(MaskError):
            random_visible(grid, keep, seed)
    else:
        require_indices(random_visible(grid, keep, seed), count, grid**2)


@settings(max_examples=4 * settings.default.max_examples)
@given(st.integers(2, 12), st.floats(0.05, 0.5) | RATIOS, st.integers(0, 9), SEEDS)
def test_several_masks_remove_every_patch(grid: int, ratio: float, more: int, seed: int) -> None:
    num_patches = grid**2
    kept = int(num_patches * (1 - ratio))
    assume(0 < kept < num_patches and num_patches - kept >= num_patches / 20)
    least = passes_to_cover(num_patches, ratio)
    assert (least - 1) * (num_patches - kept) < num_patches <= least * (num_patches - kept)
    passes = complementary_visible(grid, ratio, least + more, seed)
    assert len(passes) == least + more
    for visible_indices in passes:
        require_indices(visible_indices, kept, num_patches)
    for start in range(0, len(passes) - least + 1, least):  # each round
        common = set(range(num_patches)).intersection(*(visible.tolist() for visible in passes[start : start + least]))
        assert not common
    with pytest.raises(MaskError):
        complementary_visible(grid, ratio, least - 1, seed)


@given(st.integers(1, 40), st.lists(st.integers(-2, 42), max_size=60))
def test_explicit_masks(num_patches: int, named: list[int]) -> None:
    def outcome(indices: Iterable[int]) -> list[int] | None:
        chosen = sorted(indices)
        return chosen if set(named) <= set(range(num_patches)) else None

    removed, inside = set(range(num_patches)) - set(named), set(named)
    for call, expected, least in ((visible_without, outcome(removed), 1), (visible_inside, outcome(inside), 0)):
        if expected is None or not expected or (least and len(expected) == num_patches):
            with pytest.raises(MaskError):
                call(named, num_patches)
        else:
            visible_indices = call(named, num_patches)
            require_indices(visible_indices, len(expected), num_patches)
            assert visible_indices.tolist() == expected


@given(st.integers(1, 40), st.data())
def test_flags_and_restore_indices_are_inverse_to_the_mask(num_patches: int, data: st.DataObject) -> None:
    batch = data.draw(
        st.lists(st.sets(st.integers(0, num_patches - 1), min_size=1).map(sorted), min_size=1, max_size=3)
    )
    longest = max(map(len, batch))
    padded = np.array([[*visible, *[PAD] * (longest - len(visible))] for visible in batch], np.int32)
    restore = restore_indices_for(padded, num_patches)
    assert restore.dtype == np.int32 and restore.shape == (len(batch), num_patches)
    for visible, own in zip(batch, restore.tolist(), strict=True):
        flags = removed_flags(np.array(visible, np.int32), num_patches)
        assert flags.tolist() == [int(patch not in visible) for patch in range(num_patches)]
        tokens = ["mask", "cls", *visible]
        assert [tokens[index] for index in own] == [p if p in visible else "mask" for p in range(num_patches)]


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_patches_and_back(grid: int, patch_size: int, batch: int, seed: int) -> None:
    side = grid * patch_size
    images = np.random.default_rng(seed).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    patches = vit.patchify(torch.from_numpy(images), patch_size)
    assert patches.shape == (batch, grid**2, patch_size**2 * 3)
    assert np.array_equal(vit.unpatchify(patches, patch_size).numpy(), images)
    for image, own in zip(images, patches.numpy(), strict=True):
        assert np.array_equal(preprocess.patchify(image, patch_size), own)
        assert np.array_equal(preprocess.unpatchify(own), image)
        for index in range(grid**2):
            top, start = index // grid * patch_size, index % grid * patch_size
            assert own[index].tolist() == image[top : top + patch_size, start : start + patch_size].flatten().tolist()
