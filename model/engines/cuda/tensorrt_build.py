"""Builds the graphs into TensorRT engines, one each, with torch-tensorrt (or torch-tensorrt-rtx)."""

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
from model.engines.cuda.profiles import decoder_profiles, encoder_profiles, mixed_profiles
from model.engines.export import DECODER, ENCODER, MIXED, export_programs, graphs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.export import ExportedProgram

    from model.checkpoints.checkpoint import Checkpoint

log = logging.getLogger(__name__)
INPUTS = {
    ENCODER: ("patches", "visible_indices"),
    MIXED: ("patches", "visible_indices"),
    DECODER: ("latent", "restore_indices", "patches"),
}
OUTPUTS = {ENCODER: ("pooled", "latent"), MIXED: ("pooled", "latent"), DECODER: ("pixels", "error")}


def build_engines(
    checkpoint: Checkpoint,
    config: MAEConfig,
    preprocessing: Preprocessing,
    precision: Precision,
    most: int,
    folder: Path,
    progress: Callable[[str], None],
    device: str = "cuda",
) -> None:
    """Writes one engine a graph into `folder`, NAME.engine each.

    Args:
        checkpoint: the weights.
        config: its sizes, at the image size that is served.
        preprocessing: what the graphs undo and redo.
        precision: of the products of matrices (see `programs.to_mixed_precision`); all else is float32.
        most: the largest batch, which is the one that TensorRT tunes for.
        folder: exists.
        progress: told in words what is being done.
        device: where torch holds the graphs meanwhile.

    Raises:
        TensorRTError: TensorRT cannot build a graph whole.
    """
    graphs = graphs_of(checkpoint, config, preprocessing, precision, to_bytes=False, mixed=most > 1)
    programs = export_programs({name: graph.to(device) for name, graph in graphs.items()}, config, device)
    for number, (name, program) in enumerate(programs.items(), start=1):
        progress(
            f"building the TensorRT engine of {config.name}'s {name} ({number} of {len(programs)}) in {precision}, "
            f"batches of 1 to {most}"
        )
        (folder / f"{name}.engine").write_bytes(build_engine(name, program, config, precision, most))


def build_engine(name: str, program: ExportedProgram, config: MAEConfig, precision: Precision, most: int) -> bytes:
    """One graph as a serialised engine.

    Types are the program's own: TensorRT chooses none. Attention is one fused layer, which accumulates its softmax in
    float32, in half precision; in float32, where there is no such layer, it is taken apart.

    Raises:
        TensorRTError: TensorRT cannot build it whole.
    """
    torch_tensorrt = _torch_tensorrt()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            serialized: bytes = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
                program,
                arg_inputs=_inputs(name, config, most),
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
            words = str(error).splitlines() or [type(error).__name__]
            raise TensorRTError(f"TensorRT cannot build the {name}: {words[0]}") from error
    return bytes(serialized)


def _torch_tensorrt() -> Any:
    """The package. It looks up its user's name when it is imported, and in a container a user may have none."""
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


def _inputs(name: str, config: MAEConfig, most: int) -> list[Any]:
    """What TensorRT is told of each input: its type, and its shapes under each profile."""
    n, p, d = config.num_patches, config.patch_dim, config.embed_dim
    dims: tuple[tuple[torch.dtype, tuple[int | str, ...]], ...]
    if name in (ENCODER, MIXED):
        profiles = encoder_profiles(config, most) if name == ENCODER else mixed_profiles(config, most)
        dims = ((torch.uint8, ("B", "K", p)), (torch.int32, ("B", "K")))
    else:
        profiles = decoder_profiles(config, most)
        dims = ((torch.float32, ("B", "1+K", d)), (torch.int32, ("B", n)), (torch.uint8, ("B", n, p)))
    tell = _torch_tensorrt().Input
    return [tell(profiles=[profile.shapes(*dim) for profile in profiles], dtype=dtype) for dtype, dim in dims]
