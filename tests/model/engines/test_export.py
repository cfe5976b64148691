"""What compilers are given: the exported programs, run by torch, against the model itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoints import checkpoint
from model.checkpoints.checkpoint import Checkpoint
from model.config import PRESETS, MAEConfig, Preprocessing
from model.engines.export import DECODER, ENCODER, PADDED_ENCODER, build_graphs, export_programs
from model.masking import PAD, restore_indices_for
from model.nn import build_model
from model.nn.base import Autoencoder


@pytest.fixture(scope="module")
def made(probe: Path) -> Checkpoint:
    """The probe model's first two blocks, and the first one of its decoder: trained weights, and exported sooner."""
    whole = checkpoint.load(probe)
    config = whole.config.model_copy(update={"depth": 2, "decoder_depth": 1})
    names = build_model(config).state_dict().keys()
    return replace(whole, config=config, tensors={name: whole.tensors[name] for name in names})


@pytest.fixture(scope="module")
def model(made: Checkpoint) -> Autoencoder:
    built: Autoencoder = made.build()
    return built.eval()


@pytest.fixture(scope="module")
def programs(made: Checkpoint) -> dict[str, torch.nn.Module]:
    """As TensorRT receives them, in float32."""
    graphs = build_graphs(made, made.config, made.preprocessing, to_bytes=False, padded=True)
    return {name: program.module() for name, program in export_programs(graphs, made.config).items()}


@pytest.mark.parametrize("visible", [1, 49, 196])
@pytest.mark.parametrize("batch", [1, 3, 16])
@torch.inference_mode()
def test_the_programs_compute_what_the_model_does(
    programs: dict[str, torch.nn.Module], model: Autoencoder, made: Checkpoint, batch: int, visible: int
) -> None:
    generator = np.random.default_rng(batch * visible)
    patches = torch.from_numpy(generator.integers(0, 256, (batch, 196, 768), dtype=np.uint8))
    places = np.stack([np.sort(generator.permutation(196)[:visible]) for _ in range(batch)]).astype(np.int32)
    visible_indices, rows = torch.from_numpy(places), torch.from_numpy(restore_indices_for(places, 196))
    mean, std = (torch.tensor(made.preprocessing.model_dump()[name]).repeat(256) for name in ("mean", "std"))
    standardised = (patches / 255 - mean) / std

    seen = torch.take_along_dim(patches, visible_indices.long()[..., None], dim=1)
    pooled, latent = programs[ENCODER](seen, visible_indices)
    expected = model.forward_encoder(
        torch.take_along_dim(standardised, visible_indices.long()[..., None], dim=1), visible_indices
    )
    assert torch.allclose(latent, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(pooled[:, 0], expected[:, 0], rtol=1e-5, atol=1e-5)
    assert torch.allclose(pooled[:, 1], expected[:, 1:].mean(dim=1), rtol=1e-5, atol=1e-5)

    # A place that holds no patch more changes nothing, whatever lies there.
    padded, nowhere = torch.nn.functional.pad(seen, (0, 0, 0, 2), value=77), torch.full((batch, 2), PAD)
    if visible + 2 <= 196:
        mixed, latents = programs[PADDED_ENCODER](padded, torch.cat([visible_indices, nowhere.to(torch.int32)], dim=1))
        assert torch.allclose(latents[:, : 1 + visible], expected, rtol=1e-5, atol=1e-5)
        assert torch.allclose(mixed, pooled, rtol=1e-5, atol=1e-5)

    pixels, error = programs[DECODER](expected, rows, patches)
    pred = model.forward_decoder(expected, rows)
    assert torch.allclose(error, (pred - standardised).square().mean(dim=-1), rtol=1e-5, atol=1e-5)
    painted = ((pred * std + mean) * 255).clamp(0, 255)
    assert pixels.dtype == torch.float16
    # Rounded to whole numbers, and no further away than rounding is: 0.5, and what float32 loses at 255.
    assert torch.equal(pixels, pixels.round())
    assert (pixels - painted).abs().max() <= 0.5 + 1e-3


SHALLOW = MAEConfig(**{**PRESETS["mae_tiny"].model_dump(), "depth": 1, "decoder_depth": 1})
STAGES = {"stages": ((32, 1), (64, 1), (128, 1), (320, 1)), "depth": 4, "decoder_depth": 1}
SHALLOW_RESNET = MAEConfig(**{**PRESETS["resnet_tiny"].model_dump(), **STAGES})
PRODUCTS = ("aten.linear", "aten.conv2d", "aten.scaled_dot_product_attention")
OTHERS = ("aten.layer_norm", "aten.embedding", "aten.mean")


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("config", [SHALLOW, SHALLOW_RESNET], ids=["vit", "resnet"])
@pytest.mark.converts
def test_half_precision_is_for_products_alone(config: MAEConfig, precision: Any, dtype: torch.dtype) -> None:
    fresh = Checkpoint(config, Preprocessing(), "mae-serve", dict(build_model(config).state_dict()))
    graphs = build_graphs(fresh, config, fresh.preprocessing, precision, to_bytes=False)
    met: dict[str, set[torch.dtype]] = {}
    for program in export_programs(graphs, config).values():
        for node in program.graph.nodes:
            value = node.meta.get("val")
            if node.op == "call_function" and isinstance(value, torch.Tensor):
                met.setdefault(str(node.target).rpartition(".")[0], set()).add(value.dtype)
    assert {name: types for name, types in met.items() if name in PRODUCTS} == {
        name: {dtype} for name in PRODUCTS if name in met
    }
    assert {name: met.get(name, {torch.float32}) for name in OTHERS} == {name: {torch.float32} for name in OTHERS}
    assert "aten.linear" in met
    assert ("aten.conv2d" in met) is (config.family == "resnet")


def test_the_weights_of_the_checkpoint_stay_as_they_are(made: Checkpoint) -> None:
    before = {name: tensor.clone() for name, tensor in made.tensors.items()}
    build_graphs(made, made.config, made.preprocessing, "fp16")
    assert all(made.tensors[name].dtype == torch.float32 for name in before)
    assert all(torch.equal(made.tensors[name], tensor) for name, tensor in before.items())
