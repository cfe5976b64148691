"""`mae explain`: an image -> a picture of the patches that carry its class or its similarity, without a server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from model.images.regular_file import read_regular_file
from model.images.shares import render_shares
from service.cli.errors import CommandError, describe_file_error
from service.cli.files import require_folder, require_png, write_output
from service.cli.local_pipeline import build_engine, open_pipeline
from service.cli.options import parameters_of, settings_of
from service.errors import ServiceError
from service.inference.explanation import Explanation, ExplanationPlan, describe_explanation, explain_images
from service.inference.images import ImageRequest
from service.parameters import ExplainParameters


def explain(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The image to explain.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="<path>", help="PNG file to write; - is standard output.")
    ],
    other: Annotated[
        Path | None,
        typer.Argument(metavar="[OTHER]", help="The image that it is compared with, for --target similarity."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write the shares of all patches to standard output.")
    ] = False,
    **options: Any,
) -> None:
    """Show which patches of an image carry its class, or its similarity with another image.

    Random halves of the patches are left out. The share of a patch is the mean score of the passes that see it, less
    that of the passes that do not: red patches raise the score, blue ones lower it. The answer is that of POST /explain
    for the same images, options and seed. The score goes to standard error; with --json all figures go to standard
    output.
    """
    parameters, settings = parameters_of(ExplainParameters, options), settings_of(options)
    if as_json and str(output) == "-":
        raise CommandError("--json and the picture cannot both go to standard output")
    require_png(output)
    require_folder(output)
    paths = [image] if other is None else [image, other]
    files = [read_regular_file(path) for path in paths]
    served = build_engine(settings)
    plan = ExplanationPlan.of(parameters, served.info, served.heads)
    plan.require_images(len(files))

    async def run() -> Explanation:
        async with open_pipeline(served, settings, max_images=len(files) + parameters.passes) as pipeline:
            return await explain_images(pipeline, ImageRequest(files), plan)

    try:
        explanation = asyncio.run(run())
    except ServiceError as error:
        if "image" not in error.details:
            raise
        raise CommandError(describe_file_error(str(paths[error.details["image"]]), error)) from error
    write_output(output, render_shares(parameters.view, explanation.patches, explanation.shares))
    if as_json:
        description = {**describe_explanation(served.info, plan, explanation), "view": parameters.view}
        print(orjson.dumps(description, option=orjson.OPT_SERIALIZE_NUMPY).decode())
    else:
        score = "cosine" if explanation.label is None else f"probability of {explanation.label!r}"
        print(f"mae: seed {plan.seed}, {score} {explanation.score:.6g}, scale {explanation.scale:.6g}", file=sys.stderr)
