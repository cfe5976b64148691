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

ENCODER, PADDED_ENCODER, DECODER = "encoder", "encoder_padded", "decoder"
MAX_BATCH_SIZE = 4096
"""The largest batch that a program takes."""
HALF_TYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def build_graphs(
    checkpoint: Checkpoint,
    config: MAEConfig,
    preprocessing: Preprocessing,
    precision: Precision = "fp32",
    to_bytes: bool = True,
    padded: bool = False,
) -> dict[str, nn.Module]:
    """Builds the graphs in eval mode, by name: `ENCODER` (see `EncoderGraph`) and, if there is one, `DECODER`.

    Args:
        checkpoint: the weights.
        config: the model's sizes, at the image size that is served.
        preprocessing: gives the mean and deviation that the graphs standardise with.
        precision: the precision of the matrix products, as `to_mixed_precision` sets it.
        to_bytes: whether the decoder ends in uint8 (see `DecoderGraph`).
        padded: whether `PADDED_ENCODER` comes with them (see `PaddedEncoderGraph`), which no convolutional model has.
    """
    model = checkpoint.build(config.image_size)
    graphs: dict[str, nn.Module] = {ENCODER: EncoderGraph(model, preprocessing)}
    if config.has_decoder:
        graphs[DECODER] = DecoderGraph(model, preprocessing, to_bytes)
    if padded and isinstance(model, MaskedAutoencoder):
        graphs[PADDED_ENCODER] = PaddedEncoderGraph(model, preprocessing)
    if precision != "fp32":
        to_mixed_precision(model, HALF_TYPES[precision])
    return {name: graph.eval() for name, graph in graphs.items()}


def to_mixed_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts matrix products, convolutions and attention of `model` to `dtype`, all else to float32, in place.

    These are autocast's rules written into the graph, where a strongly typed compiler keeps them and no weight is cast
    twice: positions, residuals, layer normalisation and pooling stay in float32. With positions and residuals in half
    precision too, the parity check refuses bfloat16; and a LayerNorm in float16 has made compiled ViTs go wrong in
    silence.
    """

    def cast(to: torch.dtype) -> Any:
        return lambda module, inputs: (inputs[0].to(to), *inputs[1:])

    # The list is made first: the loop must not meet a module again that it has changed.
    for module in list(model.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d | PatchEmbed):
            module.to(dtype).register_forward_pre_hook(cast(dtype))
        elif isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(cast(torch.float32))


def export_programs(graphs: dict[str, nn.Module], config: MAEConfig, device: str = "cpu") -> dict[str, ExportedProgram]:
    """Exports the graphs of `build_graphs`, which must lie on `device`.

    Both encoders take uint8 [B, K, P] and int32 [B, K]; the decoder float32 [B, 1 + K, D], int32 [B, N] and uint8
    [B, N, P], for 1 <= B <= MAX_BATCH_SIZE and 1 <= K <= N.
    """
    n = config.num_patches
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH_SIZE)
    k: Any = torch.export.Dim.AUTO
    latents: Any = torch.export.Dim.AUTO
    visible = n
    if n > 2:
        k, latents = torch.export.Dim("k", min=1, max=n), torch.export.Dim("latents", min=2, max=n + 1)
        visible = n // 2
    patches = torch.zeros(3, n, config.patch_dim, dtype=torch.uint8, device=device)
    visible_indices = torch.arange(visible, dtype=torch.int32, device=device).repeat(3, 1)
    latent = torch.zeros(3, visible + 1, config.embed_dim, device=device)
    restore_indices = torch.zeros(3, n, dtype=torch.int32, device=device)
    encoder_example = ((patches[:, :visible].contiguous(), visible_indices), ({0: batch, 1: k}, {0: batch, 1: k}))
    examples: dict[str, tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]] = {
        ENCODER: encoder_example,
        PADDED_ENCODER: encoder_example,
        DECODER: ((latent, restore_indices, patches), ({0: batch, 1: latents}, {0: batch}, {0: batch})),
    }
    programs = {}
    for name, graph in graphs.items():
        example, dynamic = examples[name]
        with ignore_torch_deprecation():
            programs[name] = torch.export.export(graph, example, dynamic_shapes=dynamic)
    return programs


@contextmanager
def ignore_torch_deprecation() -> Iterator[None]:
    """Ignores a warning that torch 2.13 gives about its own code when it exports or decomposes a program."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        yield
