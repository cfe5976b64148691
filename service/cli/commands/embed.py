"""`mae embed`: images and folders of images -> one file of vectors, without a server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from model.arrays import Floats
from model.engines.base import ServedModel
from model.images.folders import find_images
from model.images.packs import read_image_file
from service.cli.errors import CommandError, describe_file_error
from service.cli.local_pipeline import build_engine, open_pipeline
from service.cli.options import parameters_of, settings_of
from service.cli.progress import ProgressBar
from service.cli.vector_files.space import VectorRecord, VectorSpace
from service.cli.vector_files.store import VectorStore
from service.errors import EngineLost, ServiceError
from service.inference.embedding import EmbeddingPlan
from service.inference.pipeline import Timings
from service.parameters import EmbedParameters
from service.settings import Settings

T = TypeVar("T")
INTERRUPTED = 130


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

    - .npz: the arrays paths \[n] and vectors \[n, D] (for tokens \[n, K, D]); other arrays hold model, pool and so on.

    - .parquet: the columns path and vector; the schema's metadata holds model, pool and so on as JSON, under mae-serve.

    - .jsonl: one object per line, with path, vector and space (model, pool and so on).

    If the output exists, vectors are added to it: images whose path it holds are not embedded again. The work of an
    unfinished run is kept in the folder OUTPUT.partial, and the same command continues it. Vectors of another model,
    pool, whitening, share of visible patches or preprocessing are never mixed in.

    Exit code: 0 if every image was embedded; 1 if some were skipped, with the reasons on standard error; 2 if the
    command was wrong or could not continue; 130 if it was interrupted.
    """
    parameters, settings = parameters_of(EmbedParameters, options), settings_of(options)
    images, refused = find_images(paths)
    if not images and not refused:
        raise CommandError(f"there are no images in {', '.join(map(str, paths))}")
    with VectorStore(output, overwrite) as store:
        served = build_engine(settings)
        if parameters.seed is None and store.space is not None:
            parameters = parameters.model_copy(update={"seed": store.space.seed})
        plan = EmbeddingPlan.of(parameters, served.info, served.heads)
        dim = plan.dim(served.info.config)
        store.begin(VectorSpace.of(served.info, parameters, plan.seed, plan.visible_indices, dim))
        new = [image for image in images if image not in store.paths]
        num_stored = len(images) - len(new)
        with ProgressBar(len(images) + len(refused), num_stored) as progress:
            for path, reason in refused:
                progress.skip(f"{path}: {reason}")
            try:
                asyncio.run(_embed(new, served, settings, plan, store, progress))
                store.finish()
            except KeyboardInterrupt:
                progress.write_line(f"interrupted: {progress.done} embedded so far; the same command continues the run")
                raise typer.Exit(INTERRUPTED) from None
    progress.write_line(f"{progress.done} embedded, {num_stored} already stored, {progress.skipped} skipped: {output}")
    raise typer.Exit(1 if progress.skipped else 0)


async def _embed(
    images: list[str],
    served: ServedModel,
    settings: Settings,
    plan: EmbeddingPlan,
    store: VectorStore,
    progress: ProgressBar,
) -> None:
    """Embeds `images`, many at a time, and stores the vectors in their order.

    Raises:
        EngineLost: the engine cannot go on.
    """
    # Enough for every lane to have its next batch ready while the threads decode the one after it.
    max_images = 2 * served.info.lanes * served.info.preferred_batch + settings.decode_threads
    async with open_pipeline(served, settings, max_images) as pipeline:

        async def embed_file(path: str) -> Floats | str:
            """The vector, or the sentence with the reason why there is none."""
            try:
                data = await pipeline.run_in_pool(read_image_file, path)
                vectors = await pipeline.embed([data], plan.pool, plan.visible_indices, Timings())
            except EngineLost:
                raise
            except (OSError, ServiceError) as error:
                return describe_file_error(path, error)
            vector: Floats = plan.finish(vectors)[0]
            return vector

        async with aclosing(_run_in_order(embed_file, images, max_images)) as results:
            async for path, result in results:
                if isinstance(result, str):
                    progress.skip(result)
                else:
                    store.append(VectorRecord(path, result))
                    progress.advance()


async def _run_in_order(
    work: Callable[[str], Coroutine[Any, Any, T]], items: Iterable[str], max_running: int
) -> AsyncGenerator[tuple[str, T]]:
    """Runs `work` on up to `max_running` items at the same time; yields items and results in the order of the items."""
    running: deque[tuple[str, asyncio.Task[T]]] = deque()
    try:
        for item in items:
            if len(running) == max_running:
                oldest, task = running.popleft()
                yield oldest, await task
            running.append((item, asyncio.create_task(work(item))))
        while running:
            oldest, task = running.popleft()
            yield oldest, await task
    finally:
        for _, task in running:
            task.cancel()
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)
