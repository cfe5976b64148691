"""A memory bank of normal tokens, beside a greedy search by the book and scipy's distances."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from model.anomaly.fit import FitError, choose_coreset, fit_memory_bank


def tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def test_the_next_token_is_the_farthest_from_those_chosen() -> None:
    points = tokens(300, 6)
    chosen = choose_coreset(points, 40, np.random.default_rng(1))
    between = cdist(points, points)
    for count in range(1, 40):
        assert chosen[count] == between[chosen[:count]].min(axis=0).argmax()


def test_wide_tokens_are_covered_about_as_well_by_their_projections() -> None:
    points = tokens(400, 200)
    chosen = choose_coreset(points, 60, np.random.default_rng(1))
    assert len(set(chosen)) == 60
    greedy = [0]
    between = cdist(points, points)
    while len(greedy) < 60:
        greedy.append(int(between[greedy].min(axis=0).argmax()))
    assert between[chosen].min(axis=0).max() < 1.1 * between[greedy].min(axis=0).max()


def test_few_tokens_are_all_kept_and_each_image_is_scored_by_the_others() -> None:
    images = tokens(4, 9, 5)  # fewer images than parts: each is left out alone
    bank = fit_memory_bank(images, 1000, 224, seed=0)
    np.testing.assert_array_equal(bank.tokens, images.reshape(-1, 5))
    wanted = []
    for number in range(4):
        others = np.delete(images, number, axis=0).reshape(-1, 5)
        wanted.append(cdist(images[number], others).min(axis=1).max())
    np.testing.assert_allclose(bank.scores, sorted(wanted), rtol=1e-5)


def test_the_size_is_bounded_and_the_seed_decides() -> None:
    images = tokens(12, 16, 5)
    first, again, other = (fit_memory_bank(images, 50, 224, seed) for seed in (1, 1, 2))
    assert first.tokens.shape == (50, 5) and first.scores.shape == (12,)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    np.testing.assert_array_equal(first.scores, again.scores)
    assert not np.array_equal(first.tokens, other.tokens)
    assert first.info.model_dump() == {"tokens": 50, "images": 12, "bytes": 50 * 5 * 4 + 12 * 4, "image_size": 224}


def test_one_image_is_too_few() -> None:
    with pytest.raises(FitError, match="two images or more"):
        fit_memory_bank(tokens(1, 4, 5), 10, 224, seed=0)
