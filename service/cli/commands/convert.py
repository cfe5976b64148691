"""`mae convert`: any checkpoint of a masked autoencoder -> one safetensors file that describes itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.training.config import require_no_control_characters
from service.cli.errors import CommandError
from service.cli.files import require_folder

if TYPE_CHECKING:
    from model.checkpoints.checkpoint import Checkpoint


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Checkpoint file or folder, or hf:ORG/NAME.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="<path>", help="Safetensors file to write.")],
    half: Annotated[bool, typer.Option("--half", help="Store 16 bits per number, which halves the size.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="<text>",
            help="Preset (mae_tiny … mae_huge) of a checkpoint that does not record its number of heads.",
        ),
    ] = None,
    norm_pix_loss: Annotated[
        bool | None,
        typer.Option(
            "--norm-pix-loss/--no-norm-pix-loss",
            help="Whether the decoder predicts pixels normalised within each patch, if the checkpoint does not tell.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="<text>", help="Name under which the model is served.")
    ] = None,
) -> None:
    """Convert a checkpoint to the format of mae-serve.

    SOURCE may be a .pth file of facebookresearch/mae, a folder of Hugging Face's ViTMAE, an encoder of timm, or a file
    of mae-serve. The output is one .safetensors file, which holds sizes, preprocessing, licence and name, and which
    `--weights` accepts.
    """
    if output.suffix != ".safetensors":
        raise CommandError(f"{output} should end in .safetensors")
    require_folder(output)
    if name == "":
        raise CommandError("--name is empty")
    try:
        require_no_control_characters(name or "")
    except ValueError as error:
        raise CommandError(str(error)) from None
    from dataclasses import replace

    from model.checkpoints.checkpoint import load, save
    from model.checkpoints.locate import locate

    logging.basicConfig(level=logging.WARNING, format="mae: %(message)s")
    location = locate(source, None)
    checkpoint = load(location.path, model, norm_pix_loss)
    print(f"{source}: {_describe(checkpoint)}")
    checkpoint = replace(
        checkpoint,
        config=checkpoint.config.model_copy(update={"name": name or checkpoint.config.name}),
        license=checkpoint.license or location.license,
    )
    save(output.resolve(), checkpoint, half)
    size = output.stat().st_size / 1e6
    print(f"{output}: {checkpoint.config.name}, {16 if half else 32} bits per number, {size:.1f} MB")


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
