"""`mae search`: the images of an index that are most similar to given ones."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
import typer
from rich.table import Table

from model.arrays import Floats
from model.engines.base import ServedModel
from service.cli.embedded_files import embed_files
from service.cli.image_files import SkippedFile, require_images
from service.cli.image_sources.local import resolved_path
from service.cli.index_output import FORMAT_OPTION, INDEX_OPTION, Format, require_sheet, write_sheet
from service.cli.local_pipeline import build_engine
from service.cli.options import settings_of
from service.cli.progress import ProgressBar
from service.cli.signals import INTERRUPTED, run_until_interrupted, terminate_as_interrupt
from service.cli.tables import TABLE_STYLE, add_number_columns, print_table
from service.index.sheet import Cell
from service.index.store import ImageIndex
from service.inference.embedding import EmbeddingPlan
from service.inference.searcher import Neighbour
from service.inference.vector_space import space_of
from service.settings import Settings


def search(
    paths: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Images, and folders of images.")],
    index_path: Annotated[Path, INDEX_OPTION],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="Number of neighbours of each image.")] = 10,
    output_format: Annotated[Format, FORMAT_OPTION] = "table",
    sheet: Annotated[
        Path | None,
        typer.Option("--sheet", metavar="<path>", help="Write each image and its neighbours as thumbnails, as PNG."),
    ] = None,
    **options: Any,
) -> None:
    r"""Find the images of an index that are most similar to the given ones.

    Images are embedded as those of the index were, by the same model: another vector space is refused. Similarity is
    the cosine of the angle between two vectors, 1 for the same image. An image that is in the index itself is its own
    first neighbour.

    With --format json, a line is an object with path and neighbours, and each neighbour has path, file and similarity.

    Exit code: 0 if every image was searched for; 1 if some were skipped, with the reasons on standard error; 2 if the
    command was wrong or could not continue; 130 if it was interrupted.
    """
    settings = settings_of(options)
    require_sheet(sheet)
    index = ImageIndex.open(index_path)
    images, refused, left_out = require_images(paths)
    served = build_engine(settings)
    parameters = index.description.parameters
    index.description.require(space_of(served.info, parameters), str(index_path))
    plan = EmbeddingPlan.of(parameters, served.info, served.heads)
    with terminate_as_interrupt(), ProgressBar(len(images) + len(refused)) as progress:
        for path, reason in refused:
            progress.skip(f"{path}: {reason}")
        if left_out.sentence:
            progress.write_line(left_out.sentence)
        try:
            queries, vectors = run_until_interrupted(_embed(images, served, settings, plan, progress))
            found = index.search(np.stack(vectors), k) if vectors else []
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    if str(sheet) != "-":
        for path, neighbours in zip(queries, found, strict=True):
            _print(path, neighbours, output_format)
    if sheet is not None and queries:
        rows = [
            [Cell(resolved_path(path), "query"), *(Cell(near.file, f"{near.similarity:.3f}") for near in neighbours)]
            for path, neighbours in zip(queries, found, strict=True)
        ]
        write_sheet(sheet, rows)
    raise typer.Exit(1 if progress.skipped else 0)


async def _embed(
    images: list[str], served: ServedModel, settings: Settings, plan: EmbeddingPlan, progress: ProgressBar
) -> tuple[list[str], list[Floats]]:
    """The images that can be embedded, and their vectors."""
    queries, vectors = [], []
    async with aclosing(embed_files(images, served, settings, plan)) as results:
        async for path, result in results:
            if isinstance(result, SkippedFile):
                progress.skip(result.reason)
            else:
                queries.append(path)
                vectors.append(result.vector)
                progress.advance()
    return queries, vectors


def _print(path: str, neighbours: list[Neighbour], output_format: Format) -> None:
    if output_format == "json":
        fields = ("path", "file", "similarity")
        found = [{name: getattr(near, name) for name in fields} for near in neighbours]
        print(orjson.dumps({"path": path, "neighbours": found}).decode())
        return
    table = Table(title=path, **TABLE_STYLE)
    add_number_columns(table, "similarity")
    table.add_column("path", overflow="fold")
    for near in neighbours:
        table.add_row(f"{near.similarity:.3f}", near.path)
    print_table(table)
