"""`mae reconstruct`: one image -> a picture of what the decoder makes of its visible patches, without a server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from model.engines.base import EngineInfo
from model.images.folders import SUFFIXES
from model.images.render import render
from model.masking import removed_flags
from service.cli.errors import CommandError
from service.cli.files import require_folder, write_output
from service.cli.local_pipeline import build_engine, pipeline_of, said_of
from service.cli.options import parameters_of, settings_of
from service.errors import ServiceError
from service.inference.masks import choose_removed
from service.inference.pipeline import Pipeline, Reconstruction, Timings
from service.parameters import ReconstructParameters


def reconstruct(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The image.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="<path>", help="PNG to write; - is standard output.")
    ],
    mask: Annotated[
        Path | None,
        typer.Option("--mask", metavar="<path>", help="Picture as large as the image; white patches are removed."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Describe the reconstruction on standard output: seed, mask, loss, …")
    ] = False,
    **given: Any,
) -> None:
    """Remove patches of an image and paint them anew.

    The same pixels as POST /reconstruct for the same image, options and seed. Seed, share of removed patches and loss
    are said on standard error, or with --json on standard output together with the mask and the error of every patch.
    """
    parameters, settings = parameters_of(ReconstructParameters, given), settings_of(given)
    if as_json and str(output) == "-":
        raise CommandError("--json and the picture cannot both go to standard output")
    if output.suffix.lower() in SUFFIXES - {".png"}:
        raise CommandError(f"{output}: pictures are written as PNG, so the name should end in .png")
    require_folder(output)
    data, drawn = image.read_bytes(), mask.read_bytes() if mask else None
    served = build_engine(settings)

    async def run() -> tuple[int | None, Reconstruction]:
        async with pipeline_of(served, settings, most_images=1) as pipeline:
            return await _reconstruct(pipeline, parameters, data, drawn)

    try:
        seed, found = asyncio.run(run())
    except ServiceError as error:
        if "image" not in error.details:
            raise
        raise CommandError(said_of(str(image), error)) from error
    write_output(output, render(parameters.view, found.patches, found.pixels, found.error, found.visible_indices))
    if as_json:
        facts = _facts(served.info, parameters, seed, found)
        print(orjson.dumps(facts, option=orjson.OPT_SERIALIZE_NUMPY).decode())
    else:
        said = "" if seed is None else f"seed {seed}, "
        print(f"mae: {said}mask ratio {found.removed_share:.6g}, loss {found.loss:.6f}", file=sys.stderr)


async def _reconstruct(
    pipeline: Pipeline, parameters: ReconstructParameters, data: bytes, drawn: bytes | None
) -> tuple[int | None, Reconstruction]:
    seed, place = choose_removed(pipeline.info.config, pipeline.decoder, parameters, drawn, count=1)
    [found] = await pipeline.reconstruct([data], place, Timings())
    return seed, found


def _facts(
    info: EngineInfo, parameters: ReconstructParameters, seed: int | None, found: Reconstruction
) -> dict[str, Any]:
    return {
        "model": info.model_id,
        "view": parameters.view,
        "seed": seed,
        "mask_ratio": found.removed_share,
        "grid": (info.config.grid, info.config.grid),
        "mask": removed_flags(found.visible_indices, info.config.num_patches),
        "loss": found.loss,
        "error": found.error.copy(),
    }
