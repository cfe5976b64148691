"""A decoder's target, where nobody has stated it, is doubted by what the decoder predicts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoints.checkpoint import load
from model.engines.fixed_images import IMAGES, fixed_patches, visible_quarter
from model.engines.job import ModelSpec
from model.engines.reference import load_model
from model.nn.serving import Standardise
from tests.support.foreign_checkpoints import in_mmpretrain


def torch_file(path: Path, tensors: dict[str, Tensor]) -> Path:
    torch.save({"model": tensors}, path)
    return path


@pytest.fixture(scope="module")
def pixel_decoder(probe: Path) -> dict[str, Tensor]:
    """The trained probe model, which predicts pixels."""
    return load(probe).tensors


@pytest.fixture(scope="module")
def normalised_decoder(probe: Path) -> dict[str, Tensor]:
    """The same with a last layer that predicts normalised pixels, by least squares over the fixed images."""
    checkpoint = load(probe)
    model, config = checkpoint.build(), checkpoint.config
    images = torch.from_numpy(fixed_patches(config))
    target = Standardise(checkpoint.preprocessing, config.patch_size)(images)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
    features: list[Tensor] = []
    model.decoder_norm.register_forward_hook(lambda module, inputs, output: features.append(output[:, 1:]))  # type: ignore[union-attr]
    standardised = Standardise(checkpoint.preprocessing, config.patch_size)(images)
    with torch.inference_mode():
        _, _, mask = model(standardised, torch.from_numpy(visible_quarter(config, IMAGES)))
    removed = mask.bool()
    seen = torch.cat([features[0][removed], torch.ones(int(removed.sum()), 1)], dim=1).double()
    ridge = seen.T @ seen + 1e-2 * torch.eye(seen.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(ridge, seen.T @ target[removed].double()).float()
    return checkpoint.tensors | {
        "decoder_pred.weight": solution[:-1].T.contiguous(),
        "decoder_pred.bias": solution[-1].contiguous(),
    }


def notes(path: Path, norm_pix_loss: bool | None = None) -> list[str]:
    _, loaded = load_model(ModelSpec(str(path), norm_pix_loss=norm_pix_loss))
    return [note for note in loaded.notes if "its decoder predicts" in note]


def test_a_decoder_of_normalised_pixels_is_noticed(tmp_path: Path, normalised_decoder: dict[str, Tensor]) -> None:
    path = torch_file(tmp_path / "full.pth", normalised_decoder)
    assert notes(path) == [
        "it does not tell what its decoder predicts; pixels were assumed, but its predictions look like pixels "
        "normalised within each patch: --norm-pix-loss reads them so"
    ]
    assert notes(path, norm_pix_loss=True) == [], "the operator has stated it"
    assert notes(path, norm_pix_loss=False) == []


def test_a_decoder_of_pixels_is_believed(tmp_path: Path, pixel_decoder: dict[str, Tensor]) -> None:
    assert notes(torch_file(tmp_path / "visualize.pth", pixel_decoder)) == []


def test_random_weights_raise_no_doubt(tmp_path: Path, pixel_decoder: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    shuffled = {
        name: tensor if "pos_embed" in name else 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in pixel_decoder.items()
    }
    assert notes(torch_file(tmp_path / "random.pth", shuffled)) == []


def test_mmpretrains_assumption_is_doubted_too(tmp_path: Path, pixel_decoder: dict[str, Tensor]) -> None:
    """Its recipes predict normalised pixels, but not everybody keeps to them."""
    state = {in_mmpretrain(name): tensor for name, tensor in pixel_decoder.items()}
    (note,) = notes(torch_file(tmp_path / "mm.pth", state))
    assert "look like pixels: --no-norm-pix-loss reads them so" in note


def test_the_note_about_statistics_goes_when_the_operator_gives_them(
    tmp_path: Path, pixel_decoder: dict[str, Tensor]
) -> None:
    path = str(torch_file(tmp_path / "visualize.pth", pixel_decoder))
    _, loaded = load_model(ModelSpec(path))
    assert any("ImageNet" in note for note in loaded.notes)
    given = {"mean": (0.418, 0.421, 0.399), "std": (0.288, 0.275, 0.276)}
    _, loaded = load_model(ModelSpec(path, preprocess=given))
    assert not any("ImageNet" in note for note in loaded.notes)
    assert np.allclose(loaded.preprocessing.mean, given["mean"])
