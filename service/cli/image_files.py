"""Image files through the pipeline, many at a time, for commands that take images and folders of images."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

from model.engines.base import EngineInfo
from model.images.folders import FoundImages, find_images
from model.images.packs import read_image_file
from service.cli.errors import CommandError, describe_file_error
from service.errors import EngineLost, ServiceError
from service.inference.pipeline import Pipeline
from service.settings import Settings

T = TypeVar("T")


class SkippedFile(NamedTuple):
    """An image file that cannot be used."""

    reason: str
    """One sentence, which names the file."""


def require_images(paths: list[Path]) -> FoundImages:
    """The images in `paths`.

    Raises:
        CommandError: there are none.
        FileNotFoundError: one of `paths` does not exist.
    """
    found = find_images(paths)
    if not found.images and not found.refused:
        sentence = f"there are no images in {', '.join(map(str, paths))}"
        raise CommandError("; ".join(filter(None, [sentence, found.left_out.sentence])))
    return found


def most_images_at_once(info: EngineInfo, settings: Settings) -> int:
    """Enough for every lane to have its next batch ready while the threads decode the one after it."""
    return 2 * info.lanes * info.preferred_batch + settings.decode_threads


async def run_pipeline(
    pipeline: Pipeline, paths: Iterable[str], compute: Callable[[bytes], Awaitable[T]], max_running: int
) -> AsyncGenerator[tuple[str, T | SkippedFile]]:
    """Reads files and computes a result of each; yields the paths and the results in the order of the paths.

    Args:
        pipeline: reads the files in its threads.
        paths: the files.
        compute: makes the result from a file's bytes.
        max_running: number of files at a time.

    Raises:
        EngineLost: the engine cannot go on.
    """

    async def run(path: str) -> T | SkippedFile:
        try:
            return await compute(await pipeline.run_in_pool(read_image_file, path))
        except EngineLost:
            raise
        except (OSError, ServiceError) as error:
            return SkippedFile(describe_file_error(path, error))

    running: deque[tuple[str, asyncio.Task[T | SkippedFile]]] = deque()
    try:
        for path in paths:
            if len(running) == max_running:
                oldest, task = running.popleft()
                yield oldest, await task
            running.append((path, asyncio.create_task(run(path))))
        while running:
            oldest, task = running.popleft()
            yield oldest, await task
    finally:
        for _, task in running:
            task.cancel()
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)
