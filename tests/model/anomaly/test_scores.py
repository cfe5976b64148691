"""Scores of patches, beside loops over single patches and scipy's filters."""

import numpy as np
import pytest
from scipy import ndimage

from model.anomaly.scores import expected_pixels, reconstruction_scores, score_map

STD = (0.2, 0.25, 0.5)


def smoothed_by_scipy(scores: np.ndarray, weights: list[float]) -> np.ndarray:
    grid = round(len(scores) ** 0.5)
    return ndimage.convolve(scores.reshape(grid, grid), np.outer(weights, weights), mode="nearest").ravel()


def score_by_hand(image: np.ndarray, expected: np.ndarray, side: int, blocks: int) -> float:
    """The squared error of one patch [P], by the means of its blocks."""
    difference = ((expected - image) / 255 / np.tile(STD, side * side)).reshape(side, side, 3)
    size = side // blocks
    total = 0.0
    for row in range(0, side, size):
        for column in range(0, side, size):
            for channel in range(3):
                total += difference[row : row + size, column : column + size, channel].mean() ** 2
    return total / (blocks * blocks * 3)


def variance_by_hand(patch: np.ndarray) -> float:
    """The variance of a patch's pixels, averaged over the channels."""
    return float(np.mean([np.var(patch[channel::3] / 255 / STD[channel]) for channel in range(3)]))


@pytest.mark.parametrize(("side", "blocks"), [(16, 4), (14, 2), (6, 3), (1, 1)])
def test_reconstruction_scores(side: int, blocks: int) -> None:
    rng = np.random.default_rng(side)
    image = rng.integers(0, 256, (25, side * side * 3), dtype=np.uint8)
    expected = rng.uniform(0, 255, image.shape).astype(np.float32)
    error = np.array([score_by_hand(*pair, side, blocks) for pair in zip(image.astype(float), expected, strict=True)])
    around = smoothed_by_scipy(np.array([variance_by_hand(patch) for patch in image]), [1 / 3] * 3)
    usual = np.array([variance_by_hand(patch) for patch in expected]) + around
    wanted = smoothed_by_scipy(error / (usual + 0.1), [1 / 4, 1 / 2, 1 / 4])
    np.testing.assert_allclose(reconstruction_scores(image, expected, STD), wanted, rtol=1e-4)


def test_an_image_as_expected_scores_nothing_and_a_strange_patch_scores_most() -> None:
    rng = np.random.default_rng(0)
    image = np.tile(rng.integers(100, 140, 48, dtype=np.uint8), (36, 1))
    assert not reconstruction_scores(image, image.astype(np.float32), STD).any()
    strange = image.copy()
    strange[14] = 255
    assert reconstruction_scores(strange, image.astype(np.float32), STD).argmax() == 14


def test_a_patch_is_expected_by_the_passes_that_remove_it() -> None:
    pixels = [np.full((4, 3), value, np.uint8) for value in (10, 20, 60)]
    visible = [np.array(kept, np.int32) for kept in ([0, 1], [0, 2], [2, 3])]
    expected = expected_pixels(pixels, visible)
    assert expected[:, 0].tolist() == [60, (20 + 60) / 2, 10, (10 + 20) / 2]


def test_the_map_lies_between_the_centres_of_patches() -> None:
    scores = np.random.default_rng(0).uniform(size=16).astype(np.float32)
    wanted = ndimage.zoom(scores.reshape(4, 4), 8, order=1, grid_mode=True, mode="nearest")
    np.testing.assert_allclose(score_map(scores, 32), wanted, atol=1e-5)
