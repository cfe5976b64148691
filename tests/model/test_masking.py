import re

import numpy as np
import pytest

from model.masking import (
    MAX_SEED,
    STRATEGIES,
    MaskError,
    Strategy,
    all_indices,
    choose_visible,
    complementary_visible,
    new_seed,
    passes_to_cover,
    random_visible,
    removed_flags,
    restore_indices_for,
    visible_without,
)

RATIOS = (0.05, 0.1, 0.25, 0.3, 0.5, 0.6, 0.75, 0.8, 0.9, 0.95, 0.99)


def boundary(visible_indices: np.ndarray, grid: int) -> int:
    """Pairs of neighbouring patches of which one is removed and one is not."""
    mask = np.ones(grid * grid, dtype=int)
    mask[visible_indices] = 0
    square = mask.reshape(grid, grid)
    return int(np.abs(np.diff(square, axis=0)).sum() + np.abs(np.diff(square, axis=1)).sum())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("grid", [2, 3, 7, 14, 16])
def test_every_strategy_keeps_exactly_the_count_that_upstream_keeps(strategy: Strategy, grid: int) -> None:
    patches = grid * grid
    for ratio in RATIOS:
        kept = int(patches * (1 - ratio))  # len_keep of models_mae.py
        if kept in (0, patches):
            continue
        for seed in (0, 1, 2**53 - 1, MAX_SEED):
            visible_indices = choose_visible(strategy, grid, ratio, seed)
            assert visible_indices.dtype == np.int32
            assert visible_indices.shape == (kept,)
            assert visible_indices[0] >= 0
            assert visible_indices[-1] < patches
            assert (np.diff(visible_indices) > 0).all()


# Literals: a seed that users wrote down must give the same mask for good.
@pytest.mark.parametrize(
    ("strategy", "grid", "ratio", "seed", "visible"),
    [
        ("random", 4, 0.75, 0, [2, 3, 11, 13]),
        ("random", 4, 0.75, 7, [3, 6, 11, 12]),
        ("random", 4, 0.75, MAX_SEED, [2, 4, 7, 11]),
        ("random", 7, 0.75, 42, [4, 8, 15, 17, 25, 27, 28, 35, 36, 38, 43, 47]),
        ("block", 4, 0.75, 0, [12, 13, 14, 15]),
        ("block", 4, 0.75, MAX_SEED, [2, 3, 10, 11]),
        ("block", 6, 0.5, 0, [5, 11, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 29, 30, 31, 32, 33, 35]),
        ("grid", 4, 0.75, 0, [5, 7, 13, 15]),
        ("grid", 4, 0.75, 1, [4, 6, 12, 14]),
        ("grid", 4, 0.75, 3, [1, 3, 9, 11]),
        ("grid", 5, 0.6, 7, [2, 4, 6, 8, 10, 14, 16, 18, 20, 22]),
    ],
)
def test_a_seed_means_the_same_mask_for_good(
    strategy: Strategy, grid: int, ratio: float, seed: int, visible: list[int]
) -> None:
    assert choose_visible(strategy, grid, ratio, seed).tolist() == visible


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**53, MAX_SEED])
def test_random_keeps_the_smallest_raw_outputs_of_pcg64(seed: int) -> None:
    raw = [int(np.uint64(output)) for output in np.random.PCG64(seed).random_raw(196)]
    smallest = sorted(range(196), key=raw.__getitem__)[:49]
    assert choose_visible("random", 14, 0.75, seed).tolist() == sorted(smallest)


def test_random_removes_every_patch_equally_often() -> None:
    removed = np.mean([removed_flags(choose_visible("random", 7, 0.75, seed), 49) for seed in range(2000)], axis=0)
    assert np.abs(removed - 37 / 49).max() < 0.05  # five standard deviations


@pytest.mark.parametrize("grid", [4, 14, 16])
def test_grid_at_three_quarters_keeps_one_patch_of_every_square_of_four(grid: int) -> None:
    seen = set()
    for seed in range(20):
        visible = 1 - removed_flags(choose_visible("grid", grid, 0.75, seed), grid * grid)
        squares = visible.reshape(grid // 2, 2, grid // 2, 2).transpose(0, 2, 1, 3).reshape(-1, 4)
        assert (squares.sum(axis=1) == 1).all()
        assert (squares == squares[0]).all(), "the same one everywhere: a regular grid"
        seen.add(int(squares[0].argmax()))
    assert seen == {0, 1, 2, 3}, "which one is the seed's choice"


def test_block_removes_contiguous_regions() -> None:
    seeds = range(20)
    block = [boundary(choose_visible("block", 14, 0.5, seed), 14) for seed in seeds]
    random = [boundary(choose_visible("random", 14, 0.5, seed), 14) for seed in seeds]
    assert max(block) < min(random) / 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_seeds_differ(strategy: Strategy) -> None:
    assert len({choose_visible(strategy, 14, 0.6, seed).tobytes() for seed in range(50)}) > 25


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("grid", "ratio"), [(14, 1.0), (14, 0.999), (1, 0.75), (2, 0.8)])
def test_nothing_left_to_see_is_refused(strategy: Strategy, grid: int, ratio: float) -> None:
    with pytest.raises(MaskError, match=f"all {grid**2} patches would be removed"):
        choose_visible(strategy, grid, ratio, 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_removed_is_refused(strategy: Strategy) -> None:
    with pytest.raises(MaskError, match="none of the 196 patches would be removed"):
        choose_visible(strategy, 14, 0.0, 0)


def test_explicit_positions_are_what_is_left() -> None:
    visible_indices = visible_without([3, 0, 3, 8], 9)
    assert visible_indices.tolist() == [1, 2, 4, 5, 6, 7]
    assert visible_indices.dtype == np.int32


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ([9], "there is no patch 9: they are numbered 0 to 8"),
        ([-1], "there is no patch -1"),
        ([], "none of the 9 patches would be removed"),
        (range(9), "all 9 patches would be removed"),
    ],
)
def test_explicit_masks_that_cannot_be_are_refused(removed: list[int], message: str) -> None:
    with pytest.raises(MaskError, match=re.escape(message)):
        visible_without(removed, 9)


def test_kept_share_is_a_seeded_random_choice() -> None:
    assert random_visible(4, 0.5, 3).tolist() == [0, 1, 4, 5, 7, 9, 10, 12]
    assert random_visible(4, 0.25, 0).tolist() == choose_visible("random", 4, 0.75, 0).tolist()
    assert len(random_visible(14, 0.33, 1)) == 64
    assert random_visible(3, 1.0, 5).tolist() == list(range(9))


def test_keeping_less_than_one_patch_is_refused() -> None:
    with pytest.raises(MaskError, match=r"keep=0\.05 leaves none of the 16 patches"):
        random_visible(4, 0.05, 0)


def test_every_position() -> None:
    assert all_indices(5).tolist() == [0, 1, 2, 3, 4]
    assert all_indices(5).dtype == np.int32


def test_removed_flags_are_one_where_removed() -> None:
    flags = removed_flags(np.array([1, 2, 5], dtype=np.int32), 6)
    assert flags.tolist() == [1, 0, 0, 1, 1, 0]
    assert flags.dtype == np.uint8


def test_decoder_rows_by_hand() -> None:
    visible_indices = np.array([[1, 3], [0, 4]], dtype=np.int32)
    tokens_of_patches = restore_indices_for(visible_indices, 5)
    # token 0 of the table is the mask token, token 1 cls, tokens 2 and 3 the visible patches in order
    assert tokens_of_patches.tolist() == [[0, 2, 0, 3, 0], [2, 0, 0, 0, 3]]
    assert tokens_of_patches.dtype == np.int32


def test_new_seeds_survive_a_double() -> None:
    seeds = [new_seed() for _ in range(100)]
    assert all(0 <= seed < 2**53 and int(float(seed)) == seed for seed in seeds)
    assert len(set(seeds)) == 100


@pytest.mark.parametrize(
    ("grid", "ratio", "least"),
    [(14, 0.75, 2), (14, 0.5, 2), (14, 0.3, 4), (14, 0.9, 2), (14, 0.25, 4), (7, 0.6, 2), (3, 0.75, 2), (3, 0.3, 3)],
)
def test_complementary_masks_remove_every_patch(grid: int, ratio: float, least: int) -> None:
    assert passes_to_cover(grid**2, ratio) == least
    kept = int(grid**2 * (1 - ratio))
    for passes in (least, least + 1, 4 * least):
        chosen = complementary_visible(grid, ratio, passes, seed=5)
        assert [len(visible) for visible in chosen] == [kept] * passes
        removed = np.sum([removed_flags(visible, grid**2).astype(int) for visible in chosen], axis=0)
        assert removed.min() >= passes // least
        assert removed.sum() == passes * (grid**2 - kept)
    first, second = chosen[0], chosen[least]
    assert set(first) != set(second), "each round has an order of its own"


def test_complementary_masks_by_the_raw_outputs_of_pcg64() -> None:
    bits = np.random.PCG64(11)
    for number, visible in enumerate(complementary_visible(3, 0.5, 4, seed=11)):
        if number % 2 == 0:
            raw = bits.random_raw(9).tolist()
            order = sorted(range(9), key=lambda patch: raw[patch])
        start = (number % 2) * 9 // 2
        removed = {order[(start + step) % 9] for step in range(9 - int(9 * 0.5))}
        assert visible.tolist() == sorted(set(range(9)) - removed)


def test_complementary_masks_need_enough_passes() -> None:
    with pytest.raises(MaskError, match="needs 4 passes"):
        complementary_visible(14, 0.25, 3, seed=0)
    for ratio in (0.0, 1.0):
        with pytest.raises(MaskError, match="patches would be removed"):
            passes_to_cover(196, ratio)
