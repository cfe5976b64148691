"""`mae classify`: images and folders of images -> their most probable classes, without a server."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from model.arrays import Floats
from model.engines.base import ServedModel
from service.cli.image_files import SkippedFile, most_images_at_once, require_images, run_pipeline
from service.cli.local_pipeline import build_engine, open_pipeline
from service.cli.options import parameters_of, settings_of
from service.cli.progress import ProgressBar
from service.cli.signals import INTERRUPTED, run_until_interrupted, terminate_as_interrupt
from service.errors import NoHead
from service.inference.classification import classify_images, most_probable
from service.inference.images import ImageRequest
from service.parameters import ClassifyParameters
from service.settings import Settings


def classify(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Images, and folders of images.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON object per image instead of a table.")
    ] = False,
    **options: Any,
) -> None:
    """Name the most probable classes of images, by a classification head that `mae finetune` has trained.

    Standard output gets one line per image: its path, then each class and its probability, separated by tabs. With
    --json a line is an object with path and classes, which are those of POST /classify. Folders are searched as by
    `mae embed`.

    Exit code: 0 if every image was classified; 1 if some were skipped, with the reasons on standard error; 2 if the
    command was wrong or could not continue; 130 if it was interrupted.
    """
    parameters, settings = parameters_of(ClassifyParameters, options), settings_of(options)
    images, refused, left_out = require_images(paths)
    served = build_engine(settings)
    if served.heads.head is None:
        raise NoHead.of(served.info.model)
    with terminate_as_interrupt(), ProgressBar(len(images) + len(refused), stage="classifying") as progress:
        for path, reason in refused:
            progress.skip(f"{path}: {reason}")
        if left_out.sentence:
            progress.write_line(left_out.sentence)
        try:
            run_until_interrupted(_classify(images, served, settings, parameters.top_k, as_json, progress))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    progress.write_line(f"{progress.done} classified, {progress.skipped} skipped")
    raise typer.Exit(1 if progress.skipped else 0)


async def _classify(
    images: list[str], served: ServedModel, settings: Settings, top_k: int, as_json: bool, progress: ProgressBar
) -> None:
    """Classifies `images`, many at a time, and prints the classes in their order.

    Raises:
        EngineLost: the engine cannot go on.
    """
    max_images = most_images_at_once(served.info, settings)
    async with open_pipeline(served, settings, max_images) as pipeline:
        labels = pipeline.head.config.classes

        async def classify_image(data: bytes) -> Floats:
            [probabilities] = await classify_images(pipeline, ImageRequest([data]))
            return probabilities

        async with aclosing(run_pipeline(pipeline, images, classify_image, max_images)) as results:
            async for path, result in results:
                if isinstance(result, SkippedFile):
                    progress.skip(result.reason)
                else:
                    print(_line(path, most_probable(result, labels, top_k), as_json), flush=True)
                    progress.advance()


def _line(path: str, classes: list[dict[str, Any]], as_json: bool) -> str:
    if as_json:
        return orjson.dumps({"path": path, "classes": classes}, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    return "\t".join([path, *(text for found in classes for text in (found["label"], f"{found['probability']:.4f}"))])
