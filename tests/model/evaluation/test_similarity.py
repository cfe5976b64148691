"""PSNR and SSIM against scikit-image's."""

from collections.abc import Mapping

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from model.evaluation.similarity import psnr, ssim


def pairs(photographs: Mapping[str, Image.Image]) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    cat, rocket = (np.asarray(photographs[name].resize((60, 47))) for name in ("chelsea", "rocket"))
    flat = np.full_like(cat, 250)
    noisy = np.clip(cat + rng.normal(0, 9, cat.shape), 0, 255).astype(np.uint8)
    corners = (cat[:11, :11], noisy[:11, :11])
    return [(cat, rocket), (cat, noisy), (cat, flat), (flat, flat - 2), (cat, 255 - cat), corners]


@pytest.mark.parametrize("number", range(6))
def test_they_are_those_of_scikit_image(photographs: Mapping[str, Image.Image], number: int) -> None:
    a, b = pairs(photographs)[number]
    expected = structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=2
    )
    assert ssim(a, b) == pytest.approx(expected, abs=1e-6)
    assert ssim(b, a) == pytest.approx(expected, abs=1e-6)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b), abs=1e-9)


def test_equal_pictures(photographs: Mapping[str, Image.Image]) -> None:
    cat = np.asarray(photographs["chelsea"])
    assert ssim(cat, cat) == pytest.approx(1, abs=1e-8)
    assert psnr(cat, cat) == 99


def test_a_picture_smaller_than_the_window_is_refused() -> None:
    small = np.zeros((10, 12, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="12 x 10"):
        ssim(small, small)
