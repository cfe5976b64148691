from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoints.checkpoint import load
from model.config import MAEConfig, Preprocessing
from model.masking import restore_indices_for
from model.nn.serving import DecoderGraph, EncoderGraph, Standardise
from model.nn.vit import MaskedAutoencoder, patchify, unpatchify


@pytest.fixture(scope="module")
def graphs(probe: Path) -> tuple[EncoderGraph, DecoderGraph]:
    """Both graphs of the probe model."""
    checkpoint = load(probe)
    model = checkpoint.build()
    return EncoderGraph(model, checkpoint.preprocessing), DecoderGraph(model, checkpoint.preprocessing)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_embeddings_are_the_golden_ones(
    graphs: tuple[EncoderGraph, DecoderGraph], golden: Mapping[str, np.ndarray]
) -> None:
    patches = patchify(torch.from_numpy(golden["images"]), 16)
    every_patch = torch.arange(196, dtype=torch.int32).expand(8, -1)
    pooled, latent = graphs[0](patches, every_patch)
    assert pooled.shape == (8, 2, 192)
    assert np.abs(pooled[:, 0].numpy() - golden["embed_cls"]).max() < 1e-4
    assert np.abs(pooled[:, 1].numpy() - golden["embed_mean"]).max() < 1e-4
    assert np.abs(latent[:, 1:].mean(dim=1).numpy() - golden["embed_mean"]).max() < 1e-4


def test_reconstructions_are_the_golden_ones(
    graphs: tuple[EncoderGraph, DecoderGraph], golden: Mapping[str, np.ndarray]
) -> None:
    patches = patchify(torch.from_numpy(golden["images"]), 16)
    visible_indices = np.stack([np.flatnonzero(mask == 0) for mask in golden["mask"]]).astype(np.int32)
    visible = torch.take_along_dim(patches, torch.from_numpy(visible_indices).long()[..., None], dim=1)
    _, latent = graphs[0](visible, torch.from_numpy(visible_indices))
    pixels, error = graphs[1](latent, torch.from_numpy(restore_indices_for(visible_indices, 196)), patches)
    assert pixels.dtype == torch.uint8
    painted = unpatchify(pixels, 16).numpy().astype(int)
    assert np.abs(painted - golden["reconstruction"]).max() <= 1
    loss = (error.numpy() * golden["mask"]).sum(axis=1) / golden["mask"].sum(axis=1)
    assert np.abs(loss - golden["loss"]).max() < 1e-4


class Oracle(MaskedAutoencoder):
    """A model whose decoder predicts what it is told to."""

    answer: Tensor

    def forward_decoder(self, latent: Tensor, restore_indices: Tensor) -> Tensor:
        return self.answer


def oracle(norm_pix_loss: bool, answer: Tensor) -> Oracle:
    sizes = {"image_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    decoder = {"decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2}
    model = Oracle(MAEConfig(**sizes, **decoder, norm_pix_loss=norm_pix_loss))
    model.answer = answer
    return model


PREPROCESSING = Preprocessing(mean=(0.6, 0.4, 0.2), std=(0.2, 0.25, 0.3))


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("to_bytes", [False, True])
def test_a_perfect_prediction_gives_the_image_back(norm_pix_loss: bool, to_bytes: bool) -> None:
    image = torch.randint(0, 256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    patches = patchify(image, 8)
    target = (image / 255 - torch.tensor([0.6, 0.4, 0.2])) / torch.tensor([0.2, 0.25, 0.3])
    target = patchify(target, 8)
    if norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    graph = DecoderGraph(oracle(norm_pix_loss, target), PREPROCESSING, to_bytes)
    pixels, error = graph(torch.zeros(2, 2, 16), torch.zeros(2, 16, dtype=torch.int32), patches)
    assert pixels.dtype == (torch.uint8 if to_bytes else torch.float16)
    assert torch.equal(pixels.to(torch.uint8), patches)
    assert error.shape == (2, 16)
    assert error.max() < 1e-6


def test_error_is_the_mean_square_of_each_patch_in_standardised_pixels() -> None:
    patches = torch.full((1, 16, 192), 51, dtype=torch.uint8)  # 0.2 of 255
    graph = DecoderGraph(oracle(False, torch.zeros(1, 16, 192)), PREPROCESSING)
    _, error = graph(torch.zeros(1, 2, 16), torch.zeros(1, 16, dtype=torch.int32), patches)
    expected = ((0.4 / 0.2) ** 2 + (0.2 / 0.25) ** 2 + 0**2) / 3
    assert error[0].tolist() == pytest.approx([expected] * 16, rel=1e-5)


def test_what_lies_outside_the_bytes_is_clamped() -> None:
    answer = torch.zeros(1, 16, 192)
    answer[:, 0], answer[:, 1] = 100.0, -100.0
    graph = DecoderGraph(oracle(False, answer), PREPROCESSING)
    patches = torch.zeros(1, 16, 192, dtype=torch.uint8)
    pixels, _ = graph(torch.zeros(1, 2, 16), torch.zeros(1, 16, dtype=torch.int32), patches)
    assert pixels[0, 0].unique().tolist() == [255]
    assert pixels[0, 1].unique().tolist() == [0]
    assert pixels[0, 2, :3].tolist() == [153, 102, 51]  # 255 times the mean


def test_standardising_and_back_keeps_every_byte() -> None:
    standardise = Standardise(PREPROCESSING, 16)
    every_byte = torch.arange(256, dtype=torch.uint8).repeat(3)[None]
    assert torch.equal(standardise.pixels(standardise(every_byte)), every_byte.float())


def test_an_image_is_encoded_the_same_in_any_order_of_its_patches(
    graphs: tuple[EncoderGraph, DecoderGraph], golden: Mapping[str, np.ndarray]
) -> None:
    patches = patchify(torch.from_numpy(golden["images"][:1]), 16)
    order = torch.randperm(196, generator=torch.Generator().manual_seed(0))
    pooled, _ = graphs[0](patches[:, order], order.int()[None])
    assert np.abs(pooled[:, 1].numpy() - golden["embed_mean"][:1]).max() < 1e-4
