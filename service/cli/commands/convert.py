"""`mae convert`: any checkpoint of a masked autoencoder -> our own file, or a folder that another program opens."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.checkpoints.heads_file import FILE as HEADS_FILE
from model.engines.settings import EngineSettings
from model.training.config import require_no_control_characters
from service.cli.errors import CommandError
from service.cli.files import require_folder
from service.cli.options import parameters_of

OURS = "mae-serve"
EXPORTS = ("huggingface", "timm", "onnx")

if TYPE_CHECKING:
    from model.checkpoints.checkpoint import Checkpoint


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="Checkpoint file or folder, hf:ORG/NAME, or hf:ORG/NAME/FILE.pth."),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="<path>", help="Safetensors file to write; with --to, a new folder."),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="mae-serve|huggingface|timm|onnx",
            help="Format to write: one file of mae-serve, or a folder for another program. ONNX needs the packages "
            "onnx and onnxscript.",
        ),
    ] = OURS,
    half: Annotated[bool, typer.Option("--half", help="Store 16 bits per number, which halves the size.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="<text>",
            help="Preset (mae_tiny … mae_huge) of a checkpoint that does not say its number of attention heads.",
        ),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            "--heads",
            metavar="<text>",
            help="Attention heads of the encoder, or of encoder and decoder (12,16), if the checkpoint does not say.",
        ),
    ] = None,
    norm_pix_loss: Annotated[
        bool | None,
        typer.Option(
            "--norm-pix-loss/--no-norm-pix-loss",
            help="Whether the decoder predicts pixels normalised within each patch, if the checkpoint does not say.",
        ),
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            "--preprocess",
            metavar="<json>",
            help="JSON that replaces parts of the preprocessing: resize, crop_fraction, filter, mean, std.",
        ),
    ] = None,
    head: Annotated[
        bool,
        typer.Option(
            "--head/--no-head",
            help="Whether to keep the classification head. Hugging Face's classifiers have no decoder.",
        ),
    ] = True,
    name: Annotated[
        str | None, typer.Option("--name", metavar="<text>", help="Name under which the model is served.")
    ] = None,
) -> None:
    """Convert a checkpoint to the format of mae-serve, or to that of another program.

    SOURCE may be a .pth file of facebookresearch/mae or of a program that uses its names (Lightning, lightly,
    solo-learn, timm), a file of mmpretrain, a folder of Hugging Face's ViTMAE, an encoder of timm, or a file of
    mae-serve. The output is one .safetensors file, which holds sizes, preprocessing, licence and name, and which
    `--weights` accepts. Standard error names what SOURCE does not say, and what was taken instead.

    With --to the output is a folder: `huggingface` is for transformers (ViTMAEForPreTraining, ViTMAEModel, or
    ViTForImageClassification for a head of the cls token), `timm` for timm.create_model, and `onnx` holds embed.onnx
    (pixels to vectors), encoder.onnx and decoder.onnx. Its README.md has the code that opens it. Standard output names
    what the format has no place for.
    """
    if to not in (OURS, *EXPORTS):
        raise CommandError(f"--to is {to!r}: expected {OURS}, {', '.join(EXPORTS)}")
    if to == OURS and output.suffix != ".safetensors":
        raise CommandError(f"{output} should end in .safetensors")
    require_folder(output)
    if name == "":
        raise CommandError("--name is empty")
    try:
        require_no_control_characters(name or "")
    except ValueError as error:
        raise CommandError(str(error)) from None
    from dataclasses import replace

    from model.checkpoints.checkpoint import save
    from model.checkpoints.locate import locate
    from model.engines.job import ModelSpec
    from model.engines.reference import load_model

    logging.basicConfig(level=logging.WARNING, format="mae: %(message)s")
    location = locate(source, None)
    settings = parameters_of(EngineSettings, {"heads": heads, "preprocess": preprocess})
    spec = ModelSpec(str(location.path), model, norm_pix_loss, heads=settings.heads, preprocess=settings.preprocess)
    checkpoint, loaded = load_model(spec)
    print(f"{source}: {_describe(checkpoint)}")
    for note in loaded.notes:
        print(f"mae: {source}: {note}", file=sys.stderr)
    checkpoint = replace(
        checkpoint,
        config=checkpoint.config.model_copy(update={"name": name or checkpoint.config.name}),
        preprocessing=loaded.preprocessing,
        license=checkpoint.license or location.license,
    )
    if not head:
        checkpoint = replace(checkpoint, heads=replace(checkpoint.heads, head=None))
    if to != OURS:
        _export(checkpoint, to, output, half)
        return
    save(output.resolve(), checkpoint, half)
    size = output.stat().st_size / 1e6
    print(f"{output}: {checkpoint.config.name}, {16 if half else 32} bits per number, {size:.1f} MB")


def _export(checkpoint: Checkpoint, to: str, output: Path, half: bool) -> None:
    """Writes a folder for another program, and tells what it holds."""
    from model.export.contents import ExportError
    from model.export.folder import export

    try:
        contents = export(checkpoint, to, output.resolve(), half)
    except ExportError as error:
        raise CommandError(str(error)) from None
    except OSError as error:  # it names a file of the temporary folder, or none
        raise CommandError(f"{output}: {error.strerror or error}") from error
    size = sum(file.stat().st_size for file in output.iterdir()) / 1e6
    print(f"{output}: {checkpoint.config.name} as {contents.title}, {size:.1f} MB; its README.md tells how to open it")
    for note in contents.notes:
        print(note)
    if arrays := contents.heads.arrays():
        print(f"{output / HEADS_FILE} holds what the format has no place for: {', '.join(arrays)}")


def _describe(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    decoder = "no decoder"
    if config.has_decoder:
        target = "normalised pixels" if config.norm_pix_loss else "pixels"
        heads = config.decoder_num_heads if config.family == "vit" else None
        blocks = _describe_blocks(config.decoder_embed_dim, config.decoder_depth, heads)
        decoder = f"decoder of {blocks} that predicts {target}"
    if config.family == "vit":
        encoder = f"encoder of {_describe_blocks(config.embed_dim, config.depth, config.num_heads)}"
        positions = f"{config.positions} positions, "
    else:
        stages = ", ".join(_describe_blocks(width, count) for width, count in config.stages)
        encoder, positions = f"residual encoder of {stages}", ""
    parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values()) / 1e6
    return (
        f"layout {checkpoint.layout}, {config.image_size} x {config.image_size} pixels in patches of "
        f"{config.patch_size} x {config.patch_size}, {encoder}, {decoder}, {positions}"
        f"{parameters:.1f} million parameters, licence {checkpoint.license or 'unknown'}"
    )


def _describe_blocks(width: int, depth: int, heads: int | None = None) -> str:
    return f"{depth} blocks {width} wide" + (f" with {heads} heads" if heads else "")
