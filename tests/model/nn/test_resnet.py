"""The convolutional family against a dense reference written with NumPy and bare convolutions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.checkpoints.checkpoint import Checkpoint, load, save
from model.checkpoints.errors import WeightsError
from model.config import PRESETS, MAEConfig, Preprocessing
from model.masking import restore_indices_for
from model.nn import build_model
from model.nn.resnet import ConvMaskedAutoencoder
from model.nn.vit import MaskedAutoencoder

SMALL = MAEConfig(
    name="pebble",
    family="resnet",
    image_size=48,
    patch_size=16,
    embed_dim=24,
    depth=4,
    stages=((8, 1), (16, 2), (24, 1)),
    decoder_embed_dim=16,
    decoder_depth=2,
)
"""Nine patches of 16 x 16."""
POSITIONS = torch.tensor([[0, 2, 4, 7], [1, 3, 5, 8]], dtype=torch.int32)


@pytest.fixture
def model() -> ConvMaskedAutoencoder:
    """No weight is zero or one, biases and norms included."""
    torch.manual_seed(0)
    made = ConvMaskedAutoencoder(SMALL).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn(weight.shape) * 0.1)
    return made.requires_grad_(False)


def images() -> np.ndarray:
    """Standardised pixels, float32 [2, 48, 48, 3]."""
    return np.random.default_rng(0).standard_normal((2, 48, 48, 3)).astype(np.float32)


def cut(squares: np.ndarray, side: int = 16) -> Tensor:
    """[B, H, W, 3] -> [B, N, side * side * 3], by slices."""
    count = squares.shape[1] // side
    places = [(slice(r * side, (r + 1) * side), slice(c * side, (c + 1) * side)) for r, c in np.ndindex(count, count)]
    return torch.from_numpy(np.stack([squares[:, r, c].reshape(len(squares), -1) for r, c in places], axis=1))


def seen(patches: Tensor, visible_indices: Tensor = POSITIONS) -> Tensor:
    return torch.stack([image[places.long()] for image, places in zip(patches, visible_indices, strict=True)])


def normed(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """Over the channels of [B, C, H, W]."""
    variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
    scale, shift = (state[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
    return (x - mean) / (variance + 1e-6).sqrt() * scale + shift


def residual(x: Tensor, state: dict[str, Tensor], name: str, stride: int) -> Tensor:
    y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
    y = normed(y, state, f"{name}.norm1").clamp(min=0)
    y = normed(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), state, f"{name}.norm2")
    if f"{name}.shortcut.weight" in state:
        x = F.conv2d(x, state[f"{name}.shortcut.weight"], state[f"{name}.shortcut.bias"], stride=stride)
    return (x + y).clamp(min=0)


def dense_features(state: dict[str, Tensor], squares: np.ndarray, visible_indices: Tensor) -> Tensor:
    """Features of every place, [B, D, 3, 3], of images whose removed patches are zeroed by hand."""
    kept = np.zeros((len(squares), 3, 3), dtype=np.float32)
    for flags, places in zip(kept, visible_indices.numpy(), strict=True):
        flags.flat[places] = 1
    masked = squares * kept.repeat(16, axis=1).repeat(16, axis=2)[..., None]
    x = F.conv2d(torch.from_numpy(masked.transpose(0, 3, 1, 2)), state["stem.weight"], state["stem.bias"], stride=4)
    x = normed(x, state, "stem_norm")
    for block, stride in enumerate((1, 2, 1, 2)):
        x = residual(x, state, f"blocks.{block}", stride)
        times = x.shape[-1] // 3
        x = x * torch.from_numpy(kept.repeat(times, axis=1).repeat(times, axis=2))[:, None]
    return normed(x, state, "norm")


def test_zeroing_and_reading_out_are_those_of_the_dense_reference(model: ConvMaskedAutoencoder) -> None:
    squares = images()
    latent = model.forward_encoder(seen(cut(squares)), POSITIONS)
    dense = dense_features(model.state_dict(), squares, POSITIONS).flatten(2).transpose(1, 2)
    assert latent.shape == (2, 5, 24)
    torch.testing.assert_close(latent[:, 1:], seen(dense), atol=1e-4, rtol=0)
    torch.testing.assert_close(latent[:, 0], seen(dense).mean(dim=1), atol=1e-4, rtol=0)


def test_the_decoder_is_that_of_the_dense_reference(model: ConvMaskedAutoencoder) -> None:
    state = model.state_dict()
    latent = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))
    found = model.forward_decoder(latent, torch.from_numpy(restore_indices_for(POSITIONS.numpy(), 9)))
    narrow = latent @ state["decoder_embed.weight"].T + state["decoder_embed.bias"]
    grid = state["mask_token"].expand(2, 9, -1).clone()
    for image, places in enumerate(POSITIONS):
        grid[image, places.long()] = narrow[image, 1:]
    x = grid.transpose(1, 2).reshape(2, 16, 3, 3)
    for block in range(2):
        x = residual(x, state, f"decoder_blocks.{block}", 1)
    for up in range(2):
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        weight, bias = (state[f"decoder_ups.{up}.conv.{kind}"] for kind in ("weight", "bias"))
        x = F.conv2d(x, weight, bias, padding=1).clamp(min=0)
    x = F.conv2d(x, state["decoder_pred.weight"], state["decoder_pred.bias"])  # [2, 48, 12, 12]
    painted = np.empty((2, 48, 48, 3), dtype=np.float32)
    for row, column in np.ndindex(12, 12):
        cell = x[:, :, row, column].reshape(2, 4, 4, 3)
        painted[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = cell.numpy()
    torch.testing.assert_close(found, cut(painted), atol=1e-4, rtol=0)


def test_removed_pixels_change_nothing_but_the_loss(model: ConvMaskedAutoencoder) -> None:
    patches = cut(images())
    doctored = patches.clone()
    for image, places in zip(doctored, POSITIONS, strict=True):
        image[np.setdiff1d(np.arange(9), places)] = 77.0
    (loss, pred, mask), (other_loss, other_pred, _) = model(patches, POSITIONS), model(doctored, POSITIONS)
    assert torch.equal(pred, other_pred)
    assert other_loss > 10 * loss
    assert mask.tolist() == [[0, 1, 0, 1, 0, 1, 1, 0, 1], [1, 0, 1, 0, 1, 0, 1, 1, 0]]
    by_hand = np.mean([np.mean(np.square((pred - patches)[i, n].numpy())) for i, n in np.argwhere(mask.numpy() == 1)])
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_places_matter_and_their_order_does_not(model: ConvMaskedAutoencoder) -> None:
    visible = seen(cut(images()))
    latent = model.forward_encoder(visible, POSITIONS)
    elsewhere = model.forward_encoder(visible, POSITIONS.flip(0))
    assert (elsewhere - latent).abs().amax(dim=-1).min() > 1e-3, "every feature knows where its patch and others lie"
    order = [2, 0, 3, 1]
    shuffled = model.forward_encoder(visible[:, order], POSITIONS[:, order])
    torch.testing.assert_close(shuffled[:, 1:], latent[:, 1:][:, order], atol=1e-5, rtol=0)


def test_a_feature_knows_of_other_visible_patches(model: ConvMaskedAutoencoder) -> None:
    visible = seen(cut(images()))
    changed = visible.clone()
    changed[:, 2] += 1  # the centre of the first image
    before, after = (model.forward_encoder(x, POSITIONS)[0, 1] for x in (visible, changed))
    assert (before - after).abs().max() > 1e-3


def convolution(side: int, inner: int, outer: int) -> int:
    return side**2 * inner * outer


def block(inner: int, outer: int, differs: bool) -> int:
    both = convolution(3, inner, outer) + convolution(3, outer, outer) + 2 * 2 * outer
    return both + (convolution(1, inner, outer) + outer if differs else 0)


def test_the_preset_has_the_number_of_weights_that_paper_and_pencil_give() -> None:
    with torch.device("meta"):
        made = build_model(PRESETS["resnet_tiny"])
    assert isinstance(made, ConvMaskedAutoencoder)
    count = {True: 0, False: 0}
    for name, weight in made.named_parameters():
        count[name.startswith(("decoder", "mask_token"))] += weight.numel()
    shapes = [(32, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 320), (320, 320)]
    encoder = convolution(4, 3, 32) + 32 + 2 * 32 + sum(block(*shape, shape[0] != shape[1]) for shape in shapes)
    assert count[False] == encoder + 2 * 320
    ups = sum(convolution(3, 2 * width, width) + width for width in (64, 32, 16))
    decoder = 320 * 128 + 128 + 128 + 2 * block(128, 128, False) + ups + 16 * 48 + 48
    assert count[True] == decoder
    assert 3e6 < sum(count.values()) < 8e6


@pytest.mark.slow
def test_a_fresh_model_learns() -> None:
    torch.manual_seed(0)
    fresh = build_model(SMALL.model_copy(update={"decoder_embed_dim": 32}))
    colours = torch.randn(8, 1, 1, 3).expand(-1, 48, 48, -1).numpy()  # what is hidden can be told from what is not
    patches, visible_indices = cut(colours), torch.tensor([[0, 4]]).expand(8, -1)
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=3e-3)
    first = fresh(patches, visible_indices)[0].item()
    for _ in range(80):
        loss = fresh(patches, visible_indices)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 8


def test_what_is_saved_comes_back_at_any_size(tmp_path: Path, model: ConvMaskedAutoencoder) -> None:
    save(tmp_path / "pebble", Checkpoint(SMALL, Preprocessing(), "mae-serve", dict(model.state_dict())))
    found = load(tmp_path / "pebble")
    assert found.config == SMALL
    patches = cut(images())
    built = found.build()
    torch.testing.assert_close(built(patches, POSITIONS)[1], model(patches, POSITIONS)[1], atol=0, rtol=0)
    larger = found.build(64)
    assert larger(torch.zeros(1, 16, 768), torch.tensor([[0, 5, 15]]))[1].shape == (1, 16, 768)
    with pytest.raises(ValueError, match="not a multiple of the patch size, 16"):
        found.build(56)


def test_a_file_must_hold_its_own_weights_exactly(tmp_path: Path, model: ConvMaskedAutoencoder) -> None:
    state = dict(model.state_dict())
    del state["stem.bias"]
    save(tmp_path / "less", Checkpoint(SMALL, Preprocessing(), "mae-serve", state))
    with pytest.raises(WeightsError, match=r"lacks stem\.bias"):
        load(tmp_path / "less")
    save(tmp_path / "pebble", Checkpoint(SMALL, Preprocessing(), "mae-serve", dict(model.state_dict())))
    with pytest.raises(WeightsError, match=r"is not mae_tiny: .*family is resnet, expected vit"):
        load(tmp_path / "pebble", "mae_tiny")


def test_a_vit_is_not_taken_for_the_preset(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save({"model": weights}, tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match=r"is not resnet_tiny: .*family is vit, expected resnet"):
        load(tmp_path / "vit.pth", "resnet_tiny")


def test_an_encoder_may_stand_alone() -> None:
    alone = build_model(SMALL.model_copy(update={"decoder_depth": 0}))
    assert not [name for name in alone.state_dict() if name.startswith(("decoder", "mask"))]
    assert alone.forward_encoder(torch.zeros(1, 2, 768), torch.tensor([[0, 3]])).shape == (1, 3, 24)


def test_a_config_that_names_no_family_is_a_vit() -> None:
    said = {"image_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2, "decoder_depth": 0}
    assert isinstance(build_model(MAEConfig.model_validate(said)), MaskedAutoencoder)
