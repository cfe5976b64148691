"""The model's two graphs as exported programs, the form that compilers take, with a dynamic batch and a dynamic K."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.config import MAEConfig, Preprocessing
from model.engines.base import Precision
from model.nn.serving import DecoderGraph, EncoderGraph, PaddedEncoderGraph
from model.nn.vit import MaskedAutoencoder, PatchEmbed

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from model.checkpoints.checkpoint import Checkpoint

ENCODER, MIXED, DECODER = "encoder", "encoder_mixed", "decoder"
MOST_IMAGES = 4096
"""The largest batch that a program takes."""
HALVES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def graphs_of(
    checkpoint: Checkpoint,
    config: MAEConfig,
    preprocessing: Preprocessing,
    precision: Precision = "fp32",
    to_bytes: bool = True,
    mixed: bool = False,
) -> dict[str, nn.Module]:
    """The graphs in eval mode, by name: `ENCODER` (see `EncoderGraph`) and, if there is one, `DECODER`.

    Args:
        checkpoint: the weights.
        config: its sizes, at the image size that is served.
        preprocessing: what the graphs undo and redo.
        precision: of the products of matrices, as `to_mixed_precision` does it.
        to_bytes: whether the decoder ends in uint8 (see `DecoderGraph`).
        mixed: whether `MIXED` comes with them (see `PaddedEncoderGraph`), which no convolutional model has.
    """
    model = checkpoint.build(config.image_size)
    graphs: dict[str, nn.Module] = {ENCODER: EncoderGraph(model, preprocessing)}
    if config.has_decoder:
        graphs[DECODER] = DecoderGraph(model, preprocessing, to_bytes)
    if mixed and isinstance(model, MaskedAutoencoder):
        graphs[MIXED] = PaddedEncoderGraph(model, preprocessing)
    if precision != "fp32":
        to_mixed_precision(model, HALVES[precision])
    return {name: graph.eval() for name, graph in graphs.items()}


def to_mixed_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Products of matrices, convolutions and attention of `model` in `dtype`, all else in float32. Works in place.

    These are autocast's rules written into the graph, where a strongly typed compiler keeps them and no weight is cast
    twice: positions, residuals, layer normalisation and pooling stay in float32. With positions and residuals in half
    precision too, the parity gate refuses bfloat16; and a LayerNorm in float16 is what has made compiled ViTs go wrong
    without a word.
    """

    def cast(to: torch.dtype) -> Any:
        return lambda module, inputs: (inputs[0].to(to), *inputs[1:])

    # Names first: a module must not be met again after it has been changed.
    for module in list(model.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d | PatchEmbed):
            module.to(dtype).register_forward_pre_hook(cast(dtype))
        elif isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(cast(torch.float32))


def export_programs(graphs: dict[str, nn.Module], config: MAEConfig, device: str = "cpu") -> dict[str, ExportedProgram]:
    """Exports what `graphs_of` returns, which must lie on `device`.

    Both encoders take uint8 [B, K, P] and int32 [B, K]; the decoder float32 [B, 1 + K, D], int32 [B, N] and uint8
    [B, N, P], for 1 <= B <= MOST_IMAGES and 1 <= K <= N.
    """
    n = config.num_patches
    batch = torch.export.Dim("batch", min=1, max=MOST_IMAGES)
    k: Any = torch.export.Dim.AUTO
    latents: Any = torch.export.Dim.AUTO
    seen = n
    if n > 2:
        k, latents = torch.export.Dim("k", min=1, max=n), torch.export.Dim("latents", min=2, max=n + 1)
        seen = n // 2
    patches = torch.zeros(3, n, config.patch_dim, dtype=torch.uint8, device=device)
    visible_indices = torch.arange(seen, dtype=torch.int32, device=device).repeat(3, 1)
    latent = torch.zeros(3, seen + 1, config.embed_dim, device=device)
    rows = torch.zeros(3, n, dtype=torch.int32, device=device)
    encoding = ((patches[:, :seen].contiguous(), visible_indices), ({0: batch, 1: k}, {0: batch, 1: k}))
    examples: dict[str, tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]] = {
        ENCODER: encoding,
        MIXED: encoding,
        DECODER: ((latent, rows, patches), ({0: batch, 1: latents}, {0: batch}, {0: batch})),
    }
    programs = {}
    for name, graph in graphs.items():
        example, dynamic = examples[name]
        with torchs_own_deprecation():
            programs[name] = torch.export.export(graph, example, dynamic_shapes=dynamic)
    return programs


@contextmanager
def torchs_own_deprecation() -> Iterator[None]:
    """Silences what torch 2.13 says of itself when it exports or decomposes a program."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        yield
