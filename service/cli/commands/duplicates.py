"""`mae duplicates`: groups of near-duplicates in an index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.table import Table

from service.cli.index_output import FORMAT_OPTION, INDEX_OPTION, Format, require_sheet, write_sheet
from service.cli.tables import TABLE_STYLE, add_number_columns, print_table
from service.index.duplicates import FALSE_DISCOVERIES, PIXELS, Duplicate, Duplicates, find_duplicates
from service.index.sheet import Cell
from service.index.store import ImageIndex


def duplicates(
    index_path: Annotated[Path, INDEX_OPTION],
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", metavar="<float>", min=0, help="Largest distance ratio of a pair; by default pixels decide."
        ),
    ] = None,
    pixels: Annotated[
        float,
        typer.Option(
            "--pixels", metavar="<float>", min=0, max=1, help="Least correlation of the pixels of a pair; 1 for copies."
        ),
    ] = PIXELS,
    false_discoveries: Annotated[
        float,
        typer.Option(
            "--false-discoveries",
            metavar="<float>",
            min=0,
            max=1,
            help="Share of the images found by vectors alone that may be false.",
        ),
    ] = FALSE_DISCOVERIES,
    output_format: Annotated[Format, FORMAT_OPTION] = "table",
    sheet: Annotated[
        Path | None, typer.Option("--sheet", metavar="<path>", help="Write the groups as thumbnails, as PNG.")
    ] = None,
) -> None:
    """Find groups of near-duplicates in an index: copies, other sizes, other compression, crops, mirrored, grey.

    The files of the images are read. Two images are near-duplicates if their pixels agree: the correlation of their
    details is at least --pixels, also where one is mirrored or a small crop of the other. With --threshold they must
    also be much nearer to each other than to the other images around them. Their distance ratio is their cosine
    distance, divided by the distance of an image to its fourth neighbour: the smaller one of the two images.

    Where a file cannot be read, the distance ratio alone decides, with --threshold or a threshold from the index, so
    that a given share of the images found is false. Images that pairs connect are a group.

    Each group lists the largest file first, which is the one to keep. Nothing is deleted. With --format json, a line is
    an object with keep, a file, and files; each of them has path, file, size, similarity and ratio, to the nearest
    image of the group, and pixels, the largest correlation with one (null where no pixels were compared).

    Exit code: 0, whether or not there are near-duplicates; 2 if the command was wrong or could not continue.
    """
    require_sheet(sheet)
    found = find_duplicates(ImageIndex.open(index_path), threshold, false_discoveries, pixels)
    if str(sheet) != "-":
        for number, group in enumerate(found.groups, 1):
            _print(number, group, output_format)
    if sheet is not None and found.groups:
        write_sheet(sheet, [[_cell(image, place) for place, image in enumerate(group)] for group in found.groups])
    typer.echo(_summary(found, pixels), err=True)


def _print(number: int, group: list[Duplicate], output_format: Format) -> None:
    if output_format == "json":
        print(orjson.dumps({"keep": group[0].file, "files": [image._asdict() for image in group]}).decode())
        return
    table = Table(title=f"group {number}", **TABLE_STYLE)
    table.add_column("")
    add_number_columns(table, "bytes", "similarity", "ratio", "pixels")
    table.add_column("path", overflow="fold")
    for place, image in enumerate(group):
        size = "" if image.size is None else str(image.size)
        agreement = "" if image.pixels is None else f"{image.pixels:.3f}"
        table.add_row(_advice(place), size, f"{image.similarity:.3f}", f"{image.ratio:.2f}", agreement, image.path)
    print_table(table)


def _cell(image: Duplicate, place: int) -> Cell:
    return Cell(image.file, " ".join(filter(None, (_advice(place), f"{image.similarity:.3f}"))))


def _advice(place: int) -> str:
    return "" if place else "keep"


def _summary(found: Duplicates, pixels: float) -> str:
    spare = sum(len(group) - 1 for group in found.groups)
    summary = (
        f"mae: {len(found.groups)} groups with {spare} images beside those to keep; pixels agree by {pixels} or more"
    )
    if found.unread:
        summary += (
            f". {found.unread} images cannot be read: their vectors alone decide, "
            f"up to a distance ratio of {found.threshold:.3f}"
        )
    return summary
