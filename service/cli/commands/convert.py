"""`mae convert`: any checkpoint of a masked autoencoder -> one safetensors file that says all about itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.errors import CommandError
from service.cli.files import require_folder

if TYPE_CHECKING:
    from model.checkpoints.checkpoint import Checkpoint


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Checkpoint file or folder, or hf:ORG/NAME.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="<path>", help="Safetensors file to write.")],
    half: Annotated[bool, typer.Option("--half", help="Store 16 bits a number, for half the size.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="<text>", help="Preset (mae_tiny … mae_huge) that it is, if it does not say its heads."
        ),
    ] = None,
    norm_pix_loss: Annotated[
        bool | None,
        typer.Option(
            "--norm-pix-loss/--no-norm-pix-loss",
            help="Whether the decoder predicts pixels normalised within each patch, if the checkpoint does not say.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="<text>", help="Name to serve it under.")] = None,
) -> None:
    """Convert a checkpoint to the format of mae-serve.

    Read are facebookresearch/mae .pth files, folders of Hugging Face's ViTMAE, timm's encoders and mae-serve's own
    files. Written is one .safetensors with sizes, preprocessing, licence and name inside, which `--weights` takes.
    """
    if output.suffix != ".safetensors":
        raise CommandError(f"{output} should end in .safetensors")
    require_folder(output)
    if name == "":
        raise CommandError("--name is empty")
    from dataclasses import replace

    from model.checkpoints.checkpoint import load, save
    from model.checkpoints.locate import locate

    logging.basicConfig(level=logging.WARNING, format="mae: %(message)s")
    found = locate(source, None)
    checkpoint = load(found.path, model, norm_pix_loss)
    print(f"{source}: {_described(checkpoint)}")
    checkpoint = replace(
        checkpoint,
        config=checkpoint.config.model_copy(update={"name": name or checkpoint.config.name}),
        license=checkpoint.license or found.license,
    )
    save(output.resolve(), checkpoint, half)
    size = output.stat().st_size / 1e6
    print(f"{output}: {checkpoint.config.name}, {16 if half else 32} bits a number, {size:.1f} MB")


def _described(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    decoder = "no decoder"
    if config.has_decoder:
        target = "normalised pixels" if config.norm_pix_loss else "pixels"
        heads = config.decoder_num_heads if config.family == "vit" else None
        decoder = f"decoder of {_sizes(config.decoder_embed_dim, config.decoder_depth, heads)} that predicts {target}"
    if config.family == "vit":
        encoder = f"encoder of {_sizes(config.embed_dim, config.depth, config.num_heads)}"
        positions = f"{config.positions} positions, "
    else:
        stages = ", ".join(_sizes(width, count) for width, count in config.stages)
        encoder, positions = f"residual encoder of {stages}", ""
    millions = sum(tensor.numel() for tensor in checkpoint.tensors.values()) / 1e6
    return (
        f"layout {checkpoint.layout}, {config.image_size} x {config.image_size} pixels in patches of "
        f"{config.patch_size} x {config.patch_size}, {encoder}, {decoder}, {positions}"
        f"{millions:.1f} million parameters, licence {checkpoint.license or 'not said'}"
    )


def _sizes(width: int, depth: int, heads: int | None = None) -> str:
    return f"{depth} blocks {width} wide" + (f" with {heads} heads" if heads else "")
