"""`mae index`: images, folders and files of vectors -> an index that can be searched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.files import require_folder
from service.cli.index_run import IndexParameters, IndexRun
from service.cli.indexed_vectors import VectorSource
from service.cli.options import parameters_of, settings_of
from service.cli.signals import INTERRUPTED, terminate_as_interrupt
from service.cli.vector_files.reading import is_vector_file


def index(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Images, folders of images, packs, and outputs of mae embed.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="<path>", help="Index to create or to update; ends in .lance.")
    ],
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="Store a small JPEG of each image that is embedded now.")
    ] = False,
    **options: Any,
) -> None:
    """Make or update an index of images, which `mae search` and `mae duplicates` read.

    An index that exists is updated. Images that are new in PATH are added, those whose size or time of change differ
    are replaced, and those that are gone from PATH are dropped. The others are not read again. Vectors of another space
    (model, precision, preprocessing, pool, whitening) are refused.

    The index is the folder OUTPUT, a table of LanceDB, which needs the extra index. Small indexes are searched exactly.
    A large one gets an approximate index, whose recall against exact search is measured and printed.

    Exit code: 0 if every image is in the index; 1 if some were skipped, with the reasons on standard error; 2 if the
    command was wrong or could not continue; 130 if it was interrupted: what was embedded is kept, and the same command
    continues.
    """
    parameters, settings = parameters_of(IndexParameters, options), settings_of(options)
    require_folder(output)
    vectors = [VectorSource(path) for path in paths if is_vector_file(path)]
    images = [path for path in paths if not is_vector_file(path)]
    with terminate_as_interrupt(), IndexRun(output, parameters, settings, thumbnails) as run:
        try:
            for source in vectors:
                run.index_vectors(source)
            if images:
                run.index_images(images)
            run.finish()
        except KeyboardInterrupt:
            print(f"{output}: {run.summary()}; interrupted: the same command continues")
            raise typer.Exit(INTERRUPTED) from None
    print(f"{output}: {run.summary()}")
    raise typer.Exit(1 if run.skipped else 0)
