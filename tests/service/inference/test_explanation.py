"""Which patches carry a score: subsets by counting, shares by Python's statistics."""

import statistics

import numpy as np
import pytest

from service.inference.explanation import BLOCK, compute_shares, draw_subsets


@pytest.mark.parametrize("grid", [2, 3, 14, 16])
def test_each_pass_sees_a_half_of_the_patches(grid: int) -> None:
    subsets = draw_subsets(grid, 40, seed=5)
    assert len(subsets) == 40 and {len(subset) for subset in subsets} == {grid**2 // 2}
    for subset in subsets:
        assert subset.dtype == np.int32 and (np.diff(subset) > 0).all()
        assert subset[0] >= 0 and subset[-1] < grid**2


def test_a_seed_means_the_same_subsets_for_good() -> None:
    assert [subset.tolist() for subset in draw_subsets(4, 2, seed=1)] == PINNED
    again = draw_subsets(14, 3, seed=9)
    assert all((one == other).all() for one, other in zip(again, draw_subsets(14, 5, seed=9), strict=False))
    assert any((one != other).any() for one, other in zip(again, draw_subsets(14, 3, seed=10), strict=True))


PINNED = [[0, 1, 4, 5, 8, 9, 14, 15], [2, 3, 6, 7, 8, 9, 12, 13]]


def test_every_patch_is_seen_about_as_often_as_it_is_left_out() -> None:
    seen = np.zeros(196)
    for subset in draw_subsets(14, 1000, seed=0):
        seen[subset] += 1
    assert np.abs(seen - 500).max() < 5 * 1000**0.5 / 2  # five standard deviations of a fair coin


def test_patches_are_left_out_in_squares() -> None:
    """A patch and its right neighbour lie in one square for one offset of two, so they mostly go together."""
    together, pairs = 0, 0
    for subset in draw_subsets(14, 200, seed=3):
        flags = np.isin(np.arange(196), subset).reshape(14, 14)
        together += int((flags[:, 1:] == flags[:, :-1]).sum())
        pairs += 14 * 13
    apart = 1 / BLOCK  # share of the neighbours in two squares, which agree by chance in half of the passes
    assert together / pairs == pytest.approx(1 - apart / 2, abs=0.02)


def test_shares_are_differences_of_means() -> None:
    generator = np.random.default_rng(0)
    subsets, scores = draw_subsets(4, 30, seed=2), generator.random(30).astype(np.float32)
    shares = compute_shares(scores, subsets, 16)
    for patch in range(16):
        seen = [float(score) for score, subset in zip(scores, subsets, strict=True) if patch in subset]
        left_out = [float(score) for score, subset in zip(scores, subsets, strict=True) if patch not in subset]
        assert shares[patch] == pytest.approx(statistics.fmean(seen) - statistics.fmean(left_out), abs=1e-6)


def test_a_patch_that_every_pass_sees_has_no_share() -> None:
    subsets = [np.array([0, 1], np.int32), np.array([0, 2], np.int32)]
    assert compute_shares(np.array([0.25, 0.75]), subsets, 4).tolist() == [0, -0.5, 0.5, 0]
