"""`mae embed`: files and folders of images -> a file of vectors, without a server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from model.arrays import Floats, Indices
from model.engines.base import ServedModel
from model.images.folders import find_images
from service.cli.errors import CommandError
from service.cli.local_pipeline import build_engine, pipeline_of, said_of
from service.cli.options import parameters_of, settings_of
from service.cli.progress import Report
from service.cli.vector_files.space import Row, VectorSpace
from service.cli.vector_files.store import Store
from service.errors import EngineLost, ServiceError
from service.inference.masks import choose_kept
from service.inference.pipeline import Timings, require_pool
from service.inference.postprocess import Postprocessing
from service.parameters import EmbedParameters
from service.settings import Settings

T = TypeVar("T")
INTERRUPTED = 130


def embed(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Images, and folders of images.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="<path>", help="File to make or to add to.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output instead of adding to it.")] = False,
    **given: Any,
) -> None:
    r"""Turn images into a file of vectors.

    A file is tried whatever its name; of a folder, every JPEG, PNG, WebP, BMP, AVIF, GIF and TIFF at any depth is.

    The output's suffix decides its format.

    - .npz: arrays paths \[n] and vectors \[n, D] (tokens: \[n, K, D]); model, pool and so on are arrays beside them.

    - .parquet: columns path and vector; model, pool and so on are JSON under mae-serve in the schema's metadata.

    - .jsonl: each line an object of path, vector and space (model, pool and so on); no header.

    An output that exists is added to: images whose path is in it are not embedded again. Until a run is through, its
    work is kept in the folder OUTPUT.partial; the same command goes on from there after an interruption. Vectors of
    another model, pool, whitening, share or preprocessing are never mixed in.

    Exit code: 0 if every image was embedded; 1 if some were skipped, with the reasons on standard error; 2 if the
    command was wrong or could not go on; 130 if it was interrupted.
    """
    parameters, settings = parameters_of(EmbedParameters, given), settings_of(given)
    images, refused = find_images(paths)
    if not images and not refused:
        raise CommandError(f"there are no images in {', '.join(map(str, paths))}")
    with Store(output, overwrite) as store:
        served = build_engine(settings)
        info = served.info
        require_pool(info, parameters.pool)
        if parameters.seed is None and store.space is not None:
            parameters = parameters.model_copy(update={"seed": store.space.seed})
        seed, visible_indices = choose_kept(info.config, parameters)
        finishing = Postprocessing.of(served.heads, parameters)
        dim = finishing.dim(info.config)
        store.begin(VectorSpace.of(info, parameters, seed, visible_indices, dim))
        new = [image for image in images if image not in store.paths]
        there = len(images) - len(new)
        with Report(len(images) + len(refused), there) as report:
            for path, reason in refused:
                report.skip(f"{path}: {reason}")
            try:
                asyncio.run(_embed(new, served, settings, parameters, visible_indices, finishing, store, report))
                store.finish()
            except KeyboardInterrupt:
                report.say(f"interrupted: {report.done} embedded so far; the same command goes on from there")
                raise typer.Exit(INTERRUPTED) from None
    report.say(f"{report.done} embedded, {there} there already, {report.skipped} skipped: {output}")
    raise typer.Exit(1 if report.skipped else 0)


async def _embed(
    images: list[str],
    served: ServedModel,
    settings: Settings,
    parameters: EmbedParameters,
    visible_indices: Indices,
    finishing: Postprocessing,
    store: Store,
    report: Report,
) -> None:
    # Enough for every lane to have its next batch ready while the threads decode the one after it.
    most = 2 * served.info.lanes * served.info.preferred_batch + settings.decode_threads
    async with pipeline_of(served, settings, most) as pipeline:

        async def attempt(path: str) -> Floats | str:
            """The vector, or why there is none."""
            try:
                data = await pipeline.decoder.run(Path(path).read_bytes)
                rows = await pipeline.embed([data], parameters.pool, visible_indices, Timings())
            except EngineLost:
                raise
            except (OSError, ServiceError) as error:
                return said_of(path, error)
            finished: Floats = finishing.apply(rows)[0]
            return finished

        async with aclosing(_in_order(attempt, images, most)) as results:
            async for path, result in results:
                if isinstance(result, str):
                    report.skip(result)
                else:
                    store.append(Row(path, result))
                    report.advance()


async def _in_order(
    work: Callable[[str], Coroutine[Any, Any, T]], items: Iterable[str], most: int
) -> AsyncGenerator[tuple[str, T]]:
    """Runs `work` on `items`, `most` at a time; gives the results in the order of the items."""
    running: deque[tuple[str, asyncio.Task[T]]] = deque()
    try:
        for item in items:
            if len(running) == most:
                first, task = running.popleft()
                yield first, await task
            running.append((item, asyncio.create_task(work(item))))
        while running:
            first, task = running.popleft()
            yield first, await task
    finally:
        for _, task in running:
            task.cancel()
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)
