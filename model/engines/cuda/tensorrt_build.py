"""Building a TensorRT engine of each graph, with torch-tensorrt (or torch-tensorrt-rtx)."""

from __future__ import annotations

import logging
import os
import pwd
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model.config import MAEConfig, Preprocessing
from model.engines.base import Precision, TensorRTError
from model.engines.cuda.profiles import decoder_profiles, encoder_profiles, padded_profiles
from model.engines.export import DECODER, ENCODER, PADDED_ENCODER, build_graphs, export_programs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.export import ExportedProgram

    from model.checkpoints.checkpoint import Checkpoint

log = logging.getLogger(__name__)
INPUTS = {
    ENCODER: ("patches", "visible_indices"),
    PADDED_ENCODER: ("patches", "visible_indices"),
    DECODER: ("latent", "restore_indices", "patches"),
}
OUTPUTS = {ENCODER: ("pooled", "latent"), PADDED_ENCODER: ("pooled", "latent"), DECODER: ("pixels", "error")}


def build_engines(
    checkpoint: Checkpoint,
    config: MAEConfig,
    preprocessing: Preprocessing,
    precision: Precision,
    max_batch_size: int,
    folder: Path,
    progress: Callable[[str], None],
    device: str = "cuda",
) -> None:
    """Writes one engine per graph into `folder`, NAME.engine each.

    Args:
        checkpoint: the weights.
        config: the model's sizes, at the image size that is served.
        preprocessing: gives the mean and deviation that the graphs standardise with.
        precision: the precision of the matrix products (see `export.to_mixed_precision`); all else is float32.
        max_batch_size: the largest batch, which is the one that TensorRT tunes for.
        folder: exists.
        progress: called with a sentence at every step.
        device: where torch holds the graphs meanwhile.

    Raises:
        TensorRTError: TensorRT cannot build a graph whole.
    """
    graphs = build_graphs(checkpoint, config, preprocessing, precision, to_bytes=False, padded=max_batch_size > 1)
    programs = export_programs({name: graph.to(device) for name, graph in graphs.items()}, config, device)
    for number, (name, program) in enumerate(programs.items(), start=1):
        progress(
            f"building the TensorRT engine of {config.name}'s {name} ({number} of {len(programs)}) in {precision}, "
            f"batches of 1 to {max_batch_size}"
        )
        (folder / f"{name}.engine").write_bytes(build_engine(name, program, config, precision, max_batch_size))


def build_engine(
    name: str, program: ExportedProgram, config: MAEConfig, precision: Precision, max_batch_size: int
) -> bytes:
    """Builds one graph into a serialised engine.

    Types are the program's own: TensorRT chooses none. In half precision, attention is one fused layer, which
    accumulates its softmax in float32. In float32 there is no such layer, and attention is taken apart.

    Raises:
        TensorRTError: TensorRT cannot build it whole.
    """
    torch_tensorrt = import_torch_tensorrt()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            serialized: bytes = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                program,
                arg_inputs=_inputs(name, config, max_batch_size),
                arg_input_binding_names=INPUTS[name],
                output_binding_names=OUTPUTS[name],
                require_full_compilation=True,
                min_block_size=1,
                disable_tf32=precision == "fp32",
                decompose_attention=precision == "fp32",
                timing_cache_path=str(Path(scratch) / "timings"),
            )
        except Exception as error:
            log.exception("TensorRT cannot build the %s", name)
            lines = str(error).splitlines() or [type(error).__name__]
            raise TensorRTError(f"TensorRT cannot build the {name}: {lines[0]}") from error
    return bytes(serialized)


def import_torch_tensorrt() -> Any:
    """Imports the package, which looks up the user's name meanwhile: in a container, the user may have no name."""
    user = os.getuid()
    try:
        pwd.getpwuid(user)
    except KeyError:
        nobody = pwd.struct_passwd((str(user), "x", user, os.getgid(), "", tempfile.gettempdir(), "/bin/false"))
        pwd.getpwuid = lambda uid: nobody
    try:
        return import_module("torch_tensorrt")
    except (ImportError, OSError) as error:  # OSError: a library that is missing or of another version
        raise TensorRTError(f"torch_tensorrt cannot be imported: {error}") from error


def _inputs(name: str, config: MAEConfig, max_batch_size: int) -> list[Any]:
    """The inputs of a graph for TensorRT: their types, and their shapes under each profile."""
    n, p, d = config.num_patches, config.patch_dim, config.embed_dim
    dims: tuple[tuple[torch.dtype, tuple[int | str, ...]], ...]
    if name in (ENCODER, PADDED_ENCODER):
        profiles = (
            encoder_profiles(config, max_batch_size) if name == ENCODER else padded_profiles(config, max_batch_size)
        )
        dims = ((torch.uint8, ("B", "K", p)), (torch.int32, ("B", "K")))
    else:
        profiles = decoder_profiles(config, max_batch_size)
        dims = ((torch.float32, ("B", "1+K", d)), (torch.int32, ("B", n)), (torch.uint8, ("B", n, p)))
    make_input = import_torch_tensorrt().Input
    return [make_input(profiles=[profile.shapes(*dim) for profile in profiles], dtype=dtype) for dtype, dim in dims]
