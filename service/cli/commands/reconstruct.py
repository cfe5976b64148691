"""`mae reconstruct`: one image -> a picture of its reconstruction from the visible patches, without a server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from model.engines.base import EngineInfo
from model.images.regular_file import read_regular_file
from model.images.render import render
from model.masking import removed_flags
from service.cli.errors import CommandError, describe_file_error
from service.cli.files import require_folder, require_png, write_output
from service.cli.local_pipeline import build_engine, open_pipeline
from service.cli.options import parameters_of, settings_of
from service.errors import ServiceError
from service.inference.images import ImageRequest
from service.inference.pipeline import Pipeline
from service.inference.reconstruction import (
    MaskPlan,
    Reconstruction,
    choose_patches_by_picture,
    choose_patches_to_remove,
    mean_of_draws,
    reconstruct_images,
)
from service.parameters import ReconstructParameters


def reconstruct(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The image.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="<path>", help="PNG file to write; - is standard output.")
    ],
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask", metavar="<path>", help="Picture of the same size as the image; white patches are removed."
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Describe the reconstruction on standard output: seed, mask, loss and more."),
    ] = False,
    **options: Any,
) -> None:
    """Remove patches of an image and reconstruct them.

    The pixels are those of POST /reconstruct for the same image, options and seed. The seed, the share of removed
    patches and the loss go to standard error; with --json they go to standard output, together with the mask and the
    error of every patch.
    """
    parameters, settings = parameters_of(ReconstructParameters, options), settings_of(options)
    if as_json and str(output) == "-":
        raise CommandError("--json and the picture cannot both go to standard output")
    require_png(output)
    require_folder(output)
    image_file, mask_file = read_regular_file(image), read_regular_file(mask) if mask else None
    served = build_engine(settings)

    async def run() -> tuple[MaskPlan, Reconstruction]:
        async with open_pipeline(served, settings, max_images=parameters.draws) as pipeline:
            return await _reconstruct(pipeline, parameters, image_file, mask_file)

    try:
        plan, reconstruction = asyncio.run(run())
    except ServiceError as error:
        if "image" not in error.details:
            raise
        raise CommandError(describe_file_error(str(image), error)) from error
    picture = render(
        parameters.view,
        reconstruction.patches,
        reconstruction.pixels,
        reconstruction.error,
        reconstruction.visible_indices,
        reconstruction.spread,
    )
    write_output(output, picture)
    if as_json:
        description = _describe(served.info, parameters, plan, reconstruction)
        print(orjson.dumps(description, option=orjson.OPT_SERIALIZE_NUMPY).decode())
    else:
        prefix = "" if plan.seed is None else f"seed {plan.seed}, "
        mask_ratio, loss = reconstruction.removed_share, reconstruction.loss
        print(f"mae: {prefix}mask ratio {mask_ratio:.6g}, loss {loss:.6f}", file=sys.stderr)


async def _reconstruct(
    pipeline: Pipeline, parameters: ReconstructParameters, image_file: bytes, mask_file: bytes | None
) -> tuple[MaskPlan, Reconstruction]:
    """The masks, and the reconstruction."""
    config, decoder = pipeline.info.config, pipeline.image_decoder
    plan = choose_patches_to_remove(config, parameters)
    if mask_file is not None:
        plan = choose_patches_by_picture(config, decoder, parameters, mask_file, count=1)
    [draws] = await reconstruct_images(pipeline, ImageRequest([image_file]), plan)
    return plan, mean_of_draws(draws)


def _describe(
    info: EngineInfo, parameters: ReconstructParameters, plan: MaskPlan, reconstruction: Reconstruction
) -> dict[str, Any]:
    return {
        "model": info.model_id,
        "view": parameters.view,
        "seed": plan.seed,
        **({"seeds": plan.seeds} if plan.draws > 1 else {}),
        "mask_ratio": reconstruction.removed_share,
        "grid": (info.config.grid, info.config.grid),
        "mask": removed_flags(reconstruction.visible_indices, info.config.num_patches),
        "loss": reconstruction.loss,
        "error": reconstruction.error.copy(),
        **({} if reconstruction.spread is None else {"spread": reconstruction.patch_spread}),
    }
