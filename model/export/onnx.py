"""ONNX files: pixels to vectors for everyone, and the two graphs of this project, which take indices of patches."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from model.checkpoints.checkpoint import Checkpoint, describe
from model.checkpoints.heads import POOL_INDEX, Heads, pools_of
from model.config import Preprocessing
from model.engines.export import (
    DECODER,
    ENCODER,
    MAX_BATCH_SIZE,
    build_graphs,
    export_programs,
    ignore_torch_deprecation,
)
from model.export.contents import Contents, ExportError
from model.nn.serving import EncoderGraph
from model.nn.vit import patchify

OPSET = 18
"""Old enough for TensorRT 10 and every ONNX Runtime of the last years, and the first that torch's exporter writes."""
EMBED = "embed"
INPUTS = {
    EMBED: ("images",),
    ENCODER: ("patches", "visible_indices"),
    DECODER: ("latent", "restore_indices", "patches"),
}
AXES: dict[str, tuple[dict[int, str | None], ...]] = {
    EMBED: ({0: "batch"},),
    ENCODER: ({0: "batch", 1: "visible"}, {0: None, 1: None}),
    DECODER: ({0: "batch", 1: "tokens"}, {0: None}, {0: None}),
}
"""Names of the dynamic axes of each graph's inputs; None is an axis that an earlier input has named."""
OUTPUTS = {ENCODER: ("pooled", "latent"), DECODER: ("pixels", "error")}


class EmbedGraph(nn.Module):
    """Squares of pixels uint8 [B, S, S, 3] -> all vectors of an image, as `names` tells, each float32 [B, …].

    They are the pooled vectors, those whitened, and the logits of the head, as far as the model has them. Whole images
    are encoded, and nothing is left for the host to compute.
    """

    indices: Tensor
    head_weight: Tensor
    head_bias: Tensor

    def __init__(self, encoder: EncoderGraph, heads: Heads) -> None:
        """Puts the heads behind the encoder's graph."""
        super().__init__()
        self.encoder = encoder
        config = encoder.model.config
        self.patch_size = config.patch_size
        self.register_buffer("indices", torch.arange(config.num_patches, dtype=torch.int32))
        self.pools = pools_of(config)
        self.whitened = [pool for pool in self.pools if pool in heads.whitening]
        for pool in self.whitened:
            self.register_buffer(f"centre_{pool}", torch.from_numpy(heads.whitening[pool].centre))
            self.register_buffer(f"matrix_{pool}", torch.from_numpy(heads.whitening[pool].matrix))
        self.head_pool = heads.head and heads.head.config.pool
        if heads.head is not None:
            self.register_buffer("head_weight", torch.from_numpy(heads.head.weight))
            self.register_buffer("head_bias", torch.from_numpy(heads.head.bias))

    @property
    def names(self) -> list[str]:
        """Names of the outputs: `mean` and, if the model has it, `cls`; `…_whitened`; `logits`."""
        names = [*self.pools, *(f"{pool}_whitened" for pool in self.whitened)]
        return [*names, "logits"] if self.head_pool else names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encodes whole images."""
        patches = patchify(images, self.patch_size)  # [B, N, P]
        pooled = self.encoder(patches, self.indices.expand(patches.shape[0], -1))[0]  # [B, 2, D]
        vectors = {pool: pooled[:, POOL_INDEX[pool]] for pool in self.pools}
        outputs = list(vectors.values())
        for pool in self.whitened:
            outputs.append((vectors[pool] - getattr(self, f"centre_{pool}")) @ getattr(self, f"matrix_{pool}"))
        if self.head_pool:
            vector = pooled[:, POOL_INDEX[self.head_pool]]
            outputs.append(vector @ self.head_weight.T + self.head_bias)
        return tuple(outputs)


def export_to_onnx(checkpoint: Checkpoint, folder: Path, half: bool = False) -> Contents:
    """Writes embed.onnx, encoder.onnx and, if the model has a decoder, decoder.onnx.

    The batch is dynamic and, for encoder and decoder, K is too. Each file has the model's description in its metadata,
    and more than 2 GB of weights lie in a second file beside it.

    Args:
        checkpoint: the model.
        folder: an empty folder.
        half: must be False.

    Raises:
        ExportError: onnx or onnxscript is missing, or `half` is asked for.
    """
    if half:
        raise ExportError("--half is not for --to onnx: its graphs compute in float32")
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ExportError(f"--to onnx needs the package {package}: pip install onnx onnxscript") from error
    config, heads = checkpoint.config, checkpoint.heads
    graphs = build_graphs(checkpoint, config, checkpoint.preprocessing)
    encoder = graphs[ENCODER]
    assert isinstance(encoder, EncoderGraph)
    embed = EmbedGraph(encoder, heads).eval()
    programs = {EMBED: _export_embedding(embed, config.image_size)} | export_programs(graphs, config)
    metadata = {"mae-serve": describe(checkpoint).model_dump_json()}
    if checkpoint.license is not None:
        metadata["license"] = checkpoint.license
    if heads.head is not None:
        metadata["classes"] = json.dumps(heads.head.config.classes, ensure_ascii=False)
    for name, program in programs.items():
        outputs = embed.names if name == EMBED else OUTPUTS[name]
        _write(folder / f"{name}.onnx", program, INPUTS[name], AXES[name], outputs, metadata)
    side = config.image_size
    return Contents(
        title=f"{len(programs)} graphs in ONNX, opset {OPSET}",
        usage=_USAGE.format(
            side=side, square=_square(checkpoint.preprocessing, side), output="logits" if heads.head else "mean"
        ),
        library="onnx",
        task="image-feature-extraction" if heads.head is None else "image-classification",
        weights=f"{EMBED}.onnx",
        heads=Heads(memory_bank=heads.memory_bank),
        notes=tuple(_describe_graphs(checkpoint, embed.names)),
    )


def _export_embedding(graph: EmbedGraph, side: int) -> ExportedProgram:
    images = torch.zeros(3, side, side, 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH_SIZE)
    with ignore_torch_deprecation():
        return torch.export.export(graph, (images,), dynamic_shapes=({0: batch},))


def _write(
    path: Path,
    program: ExportedProgram,
    inputs: Sequence[str],
    axes: tuple[dict[int, str | None], ...],
    outputs: Sequence[str],
    metadata: dict[str, str],
) -> None:
    import onnx
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass, NameFixPass

    with ignore_torch_deprecation():
        converted: Any = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=axes,
            opset_version=OPSET,
        )
    ClearMetadataAndDocStringPass()(converted.model)  # it has the paths of this machine's files
    NameFixPass()(converted.model)  # torch may have given a value the name of an output, such as `mean`
    for value in (*converted.model.graph.inputs, *converted.model.graph.outputs):
        value.metadata_props.clear()
    converted.model.metadata_props.update(metadata)
    converted.save(path)
    onnx.checker.check_model(path)


def _describe_graphs(checkpoint: Checkpoint, vectors: Sequence[str]) -> list[str]:
    c = checkpoint.config
    n, p, d, side = c.num_patches, c.patch_dim, c.embed_dim, c.image_size
    lines = [
        f"embed.onnx: images, uint8 [B, {side}, {side}, 3] in RGB -> {', '.join(vectors)}, float32 [B, …]. The graph "
        "standardises the pixels.",
        f"encoder.onnx: patches, uint8 [B, K, {p}], and visible_indices, int32 [B, K] -> pooled, float32 [B, 2, {d}] "
        f"(cls, mean), and latent, float32 [B, 1 + K, {d}]; 1 <= K <= {n}.",
    ]
    if c.has_decoder:
        lines.append(
            f"decoder.onnx: latent, restore_indices, int32 [B, {n}], and patches, uint8 [B, {n}, {p}] -> pixels, "
            f"uint8 [B, {n}, {p}], and error, float32 [B, {n}]. restore_indices are 0 for a removed patch, and 2 + k "
            "for the k-th visible one."
        )
    return lines


def _square(preprocessing: Preprocessing, side: int) -> str:
    """Python code that makes the model's square of an upright image, with the pixels that this project makes."""
    code = "filter = Image.Resampling." + preprocessing.filter.upper() + "\n"
    if preprocessing.resize == "squash":
        return code + f"square = image.resize(({side}, {side}), filter)"
    short = preprocessing.resized_short_side(side)
    return code + (
        f"size = [{short} * length // min(image.size) for length in image.size]\n"
        f"left, top = (round((length - {side}) / 2) for length in size)\n"
        f"square = image.resize(size, filter).crop((left, top, left + {side}, top + {side}))"
    )


_USAGE = """\
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("photograph.jpg")).convert("RGB")
{square}
session = onnxruntime.InferenceSession("embed.onnx", providers=["CPUExecutionProvider"])
vectors = session.run(["{output}"], {{"images": np.asarray(square)[None]}})[0]  # float32 [1, …]
"""
