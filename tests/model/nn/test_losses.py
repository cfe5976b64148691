import math

import pytest
import torch

from model.nn.losses import Loss, masked_loss, patch_loss, patch_statistics

TARGET = torch.tensor([[[0.0, 0.0], [1.0, 3.0], [4.0, 2.0]]])
PRED = torch.tensor([[[1.0, 1.0], [1.0, 1.0], [4.0, 6.0]]])
MASK = torch.tensor([[0.0, 1.0, 1.0]])


def test_squared_error_by_hand() -> None:
    assert patch_loss(PRED, TARGET).tolist() == [[1.0, 2.0, 8.0]]
    assert masked_loss(PRED, TARGET, MASK).item() == 5.0


def test_cosine_by_hand() -> None:
    # (1, 1) against (1, 3): 4 / sqrt(2 * 10); (4, 6) against (4, 2): 28 / sqrt(52 * 20)
    expected = [1 - 4 / math.sqrt(20), 1 - 28 / math.sqrt(1040)]
    assert patch_loss(PRED, TARGET, "cosine")[0, 1:].tolist() == pytest.approx(expected, abs=1e-6)
    assert masked_loss(PRED, TARGET, MASK, "cosine").item() == pytest.approx(sum(expected) / 2, abs=1e-6)


def test_statistics_are_unbiased_with_upstreams_epsilon() -> None:
    mean, std = patch_statistics(TARGET)
    assert mean.tolist() == [[[0.0], [2.0], [3.0]]]
    assert std.flatten().tolist() == pytest.approx([1e-3, math.sqrt(2 + 1e-6), math.sqrt(2 + 1e-6)])


def test_normalised_pixels_by_hand() -> None:
    unit = 1 / math.sqrt(2 + 1e-6)
    # targets become (-unit, unit) and (unit, -unit)
    expected = [((1 + unit) ** 2 + (1 - unit) ** 2) / 2, ((4 - unit) ** 2 + (6 + unit) ** 2) / 2]
    assert patch_loss(PRED, TARGET, norm_pix=True)[0, 1:].tolist() == pytest.approx(expected, rel=1e-6)
    assert masked_loss(PRED, TARGET, MASK, norm_pix=True).item() == pytest.approx(sum(expected) / 2, rel=1e-6)


def test_cosine_of_normalised_pixels_by_hand() -> None:
    # (4, 6) against (unit, -unit), of length sqrt(2) * unit
    expected = 1 - (4 - 6) / math.sqrt(52 * 2)
    assert patch_loss(PRED, TARGET, "cosine", norm_pix=True)[0, 2].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
@pytest.mark.parametrize("norm_pix", [False, True])
def test_visible_patches_do_not_count(kind: Loss, norm_pix: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.randn(2, 2, 6, 12, generator=generator).unbind(0)
    mask = torch.tensor([[0.0, 1, 1, 0, 1, 1], [1.0, 1, 0, 1, 0, 1]])
    before = masked_loss(pred, target, mask, kind, norm_pix)
    visible = mask == 0
    pred[visible], target[visible] = 100.0, torch.randn(4, 12, generator=generator)
    assert masked_loss(pred, target, mask, kind, norm_pix) == before
    pred[0, 1] += 1
    assert masked_loss(pred, target, mask, kind, norm_pix) != before


def test_every_removed_patch_weighs_the_same_whichever_image_it_is_of() -> None:
    pred, target = torch.zeros(2, 3, 2), torch.ones(2, 3, 2)
    target[1] = 3.0
    mask = torch.tensor([[1.0, 0, 0], [1.0, 1, 1]])
    assert masked_loss(pred, target, mask).item() == (1 + 9 * 3) / 4
