"""Roofline and baselines: work against formulas written by hand, baselines against the golden numbers."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from model.benchmark.baselines import Baseline
from model.benchmark.roofline import COPIED_BYTES, MATRIX, Peak, Work, measure_peak, roofline_seconds, works_of
from model.benchmark.weights import write_random_weights
from model.checkpoints.checkpoint import load
from model.config import PRESETS
from model.engines.base import Precision
from tests.support.engines import fake_info


def transformer_flops(length: int, width: int, depth: int) -> int:
    """24 L D^2 for the four products of a block (q, k, v and out: 8; perceptron: 16), 4 L^2 D for attention itself."""
    return depth * (24 * length * width**2 + 4 * length**2 * width)


@pytest.mark.parametrize("preset", ["mae_tiny", "mae_large", "mae_huge"])
@pytest.mark.parametrize("quarter", [False, True])
@pytest.mark.slow
def test_work_of_a_transformer(preset: str, quarter: bool) -> None:
    c = PRESETS[preset]
    n = c.num_patches
    k = n // 4 if quarter else n
    encoder, decoder = works_of(c, k, "fp16", decodes=True)
    assert encoder.flops == 2 * k * c.patch_dim * c.embed_dim + transformer_flops(1 + k, c.embed_dim, c.depth)
    width = c.decoder_embed_dim
    # the decoder embeds what was seen, and the head runs over the cls token too
    ends = 2 * (1 + k) * c.embed_dim * width + 2 * (1 + n) * width * c.patch_dim
    assert decoder.flops == ends + transformer_flops(1 + n, width, c.decoder_depth)
    assert encoder.input_output_bytes == k * c.patch_dim + 4 * k + 4 * c.embed_dim * (2 + 1 + k)
    assert encoder.activation_bytes == 2 * 2 * c.depth * (1 + k) * c.embed_dim
    parameters = {"mae_tiny": 5.52e6, "mae_large": 303.3e6, "mae_huge": 630.7e6}[preset]
    assert encoder.weight_bytes == pytest.approx(2 * parameters, rel=0.02)
    assert works_of(c, k, "fp32", decodes=False) == [
        encoder.model_copy(
            update={"weight_bytes": 2 * encoder.weight_bytes, "activation_bytes": 2 * encoder.activation_bytes}
        )
    ]


def test_work_of_a_residual_network() -> None:
    """Every position is computed, removed or not, so nothing but the input shrinks."""
    whole, quarter = (works_of(PRESETS["resnet_tiny"], k, "fp32", decodes=True) for k in (49, 12))
    assert whole[0].flops == quarter[0].flops > 5e8 and whole[1].flops > 5e7
    assert whole[0].input_output_bytes > quarter[0].input_output_bytes


def test_the_roofline_of_each_graph_is_whichever_takes_longer() -> None:
    peak = Peak(device="x", precision="fp16", flops_per_s=1000, bytes_per_s=100)
    computes = Work(flops=500, weight_bytes=10, input_output_bytes=1, activation_bytes=1)
    moves = Work(flops=1, weight_bytes=300, input_output_bytes=20, activation_bytes=30)
    assert computes.seconds(4, peak) == 2.0
    assert moves.seconds(4, peak) == 5.0
    assert roofline_seconds([computes, moves], 4, peak) == 7.0
    other = Peak(device="x", precision="fp16", flops_per_s=900, bytes_per_s=150)
    assert peak.better(other) == Peak(device="x", precision="fp16", flops_per_s=1000, bytes_per_s=150)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_the_peak_is_of_this_machine(monkeypatch: pytest.MonkeyPatch, precision: Precision) -> None:
    """The bounds hold for any CPU; the number of threads is restored."""
    monkeypatch.setattr("model.benchmark.roofline.PEAK_SECONDS", 0.05)
    monkeypatch.setitem(MATRIX, "cpu", 512)
    monkeypatch.setitem(COPIED_BYTES, "cpu", 16 << 20)
    threads = torch.get_num_threads()
    peak = measure_peak("cpu", precision)
    assert 1e9 < peak.flops_per_s < 1e14 and 1e8 < peak.bytes_per_s < 1e13
    assert torch.get_num_threads() == threads


def test_baselines_compute_the_model(probe: Path, golden: Mapping[str, np.ndarray]) -> None:
    checkpoint = load(probe)
    info = fake_info(checkpoint.config).model_copy(update={"preprocessing": checkpoint.preprocessing})
    baseline = Baseline(checkpoint, info, compiled=False)
    assert (baseline.info.precision, baseline.info.lanes) == ("fp32", 1)
    images = golden["images"].reshape(8, 14, 16, 14, 16, 3).swapaxes(2, 3).reshape(8, 196, 768)
    every_patch = np.tile(np.arange(196, dtype=np.int32), (8, 1))
    vectors = baseline.embed(0, images, every_patch)
    assert np.abs(vectors[:, 0] - golden["embed_cls"]).max() < 1e-4
    assert np.abs(baseline.tokens(0, images, every_patch).mean(axis=1) - golden["embed_mean"]).max() < 1e-4
    visible_indices = np.stack([np.flatnonzero(mask == 0) for mask in golden["mask"]]).astype(np.int32)
    pixels, error = baseline.reconstruct(0, images, visible_indices)
    painted = golden["reconstruction"].reshape(8, 14, 16, 14, 16, 3).swapaxes(2, 3).reshape(8, 196, 768)
    assert np.abs(pixels.astype(int) - painted).max() <= 1
    loss = (error * golden["mask"]).sum(axis=1) / golden["mask"].sum(axis=1)
    assert np.abs(loss / golden["loss"] - 1).max() < 1e-4


def test_random_weights_are_a_model_and_the_same_every_time(tmp_path: Path) -> None:
    first = write_random_weights("mae_tiny", tmp_path).read_bytes()
    torch.rand(3)
    assert write_random_weights("mae_tiny", tmp_path).read_bytes() == first
    checkpoint = load(tmp_path / "mae_tiny.safetensors", "mae_tiny")
    assert checkpoint.config == PRESETS["mae_tiny"]
    assert checkpoint.tensors["blocks.3.mlp.fc1.weight"].std() > 0.01
