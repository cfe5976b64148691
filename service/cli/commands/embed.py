"""`mae embed`: images and folders of images -> one file of vectors, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import typer

from model.arrays import Floats
from model.engines.base import ServedModel
from service.cli.image_files import (
    INTERRUPTED,
    SkippedFile,
    most_images_at_once,
    require_images,
    resolved_path,
    run_pipeline,
)
from service.cli.local_pipeline import build_engine, open_pipeline
from service.cli.options import parameters_of, settings_of
from service.cli.progress import ProgressBar
from service.cli.vector_files.space import VectorRecord, VectorSpace
from service.cli.vector_files.store import VectorStore
from service.inference.embedding import EmbeddingPlan, embed_images
from service.inference.images import ImageRequest
from service.parameters import EmbedParameters
from service.settings import Settings


def embed(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Images, folders of images, and packs.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="<path>", help="File to create or to add to.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output instead of adding to it.")] = False,
    **options: Any,
) -> None:
    r"""Turn images into a file of vectors.

    A file may have any name. A folder is searched at any depth for JPEG, PNG, WebP, BMP, AVIF, GIF and TIFF,
    and for HEIC if the extra heif is installed.

    The output's suffix decides its format. Here n is the number of images, D the length of a vector and K the number of
    visible patches.

    - .npz: the arrays paths \[n], files \[n] and vectors \[n, D] (for tokens \[n, K, D]); other arrays hold space,
    model, pool and so on.

    - .parquet: the columns path, file and vector; the schema's metadata holds space, model, pool and so on as JSON,
    under mae-serve.

    - .jsonl: one object per line, with path, file, vector, space, and properties (model, pool and so on).

    If the output exists, vectors are added to it: images that it holds are not embedded again. An image is recognised
    by its file, which is the absolute path without links, so that the command may be repeated from another folder. The
    work of an unfinished run is kept in the folder OUTPUT.partial, and the same command continues it. Vectors of
    another space (model, precision, preprocessing, pool, whitening, normalization, share of visible patches) are never
    mixed in; nor are vectors added to files of earlier versions, which did not convert colour profiles.

    Exit code: 0 if every image was embedded; 1 if some were skipped, with the reasons on standard error; 2 if the
    command was wrong or could not continue; 130 if it was interrupted.
    """
    parameters, settings = parameters_of(EmbedParameters, options), settings_of(options)
    images, refused, left_out = require_images(paths)
    with VectorStore(output, overwrite) as store:
        served = build_engine(settings)
        if parameters.keep < 1 and parameters.seed is None and store.space is not None:
            parameters = parameters.model_copy(update={"seed": store.space.seed})
        plan = EmbeddingPlan.of(parameters, served.info, served.heads)
        store.begin(VectorSpace.of(served.info, plan))
        named: dict[str, str] = {}
        for image in images:
            named.setdefault(resolved_path(image), image)
        new = {path: file for file, path in named.items() if file not in store.files}
        num_stored = len(images) - len(new)
        with ProgressBar(len(images) + len(refused), num_stored) as progress:
            for path, reason in refused:
                progress.skip(f"{path}: {reason}")
            if left_out.sentence:
                progress.write_line(left_out.sentence)
            try:
                asyncio.run(_embed(new, served, settings, plan, store, progress))
                store.finish()
            except KeyboardInterrupt:
                progress.write_line(f"interrupted: {progress.done} embedded so far; the same command continues the run")
                raise typer.Exit(INTERRUPTED) from None
    progress.write_line(f"{progress.done} embedded, {num_stored} already stored, {progress.skipped} skipped: {output}")
    raise typer.Exit(1 if progress.skipped else 0)


async def _embed(
    files: Mapping[str, str],
    served: ServedModel,
    settings: Settings,
    plan: EmbeddingPlan,
    store: VectorStore,
    progress: ProgressBar,
) -> None:
    """Embeds images, many at a time, and stores the vectors in their order; `files` has the file of each path.

    Raises:
        EngineLost: the engine cannot go on.
    """
    max_images = most_images_at_once(served.info, settings)
    async with open_pipeline(served, settings, max_images) as pipeline:

        async def embed_image(data: bytes) -> Floats:
            vectors, _ = await embed_images(pipeline, ImageRequest([data]), plan)
            vector: Floats = plan.finish(vectors)[0]
            return vector

        async with aclosing(run_pipeline(pipeline, files, embed_image, max_images)) as results:
            async for path, result in results:
                if isinstance(result, SkippedFile):
                    progress.skip(result.reason)
                else:
                    store.append(VectorRecord(path, result, files[path]))
                    progress.advance()
