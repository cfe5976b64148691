"""What `mae search` and `mae duplicates` share: options, and sheets of thumbnails."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import typer

from model.images.png import encode_png
from service.cli.files import require_folder, require_png, write_output
from service.index.sheet import Cell, draw_sheet

Format = Literal["table", "json"]
INDEX_OPTION = typer.Option("--index", metavar="<path>", help="Index that mae index has made.")
FORMAT_OPTION = typer.Option("--format", help="A table, or one JSON object per line.")
MAX_ROWS = 100
"""Rows on a sheet."""
MAX_COLUMNS = 25
"""Thumbnails in a row of a sheet."""


def require_sheet(sheet: Path | None) -> None:
    """Checks that a sheet can be written.

    Raises:
        CommandError: there is no such folder, or the name ends like that of another format.
    """
    if sheet is not None and str(sheet) != "-":
        require_folder(sheet)
        require_png(sheet)


def write_sheet(path: Path, rows: Sequence[Sequence[Cell]]) -> None:
    """Writes a sheet of at most `MAX_ROWS` rows and `MAX_COLUMNS` columns; standard error tells if there were more."""
    write_output(path, encode_png(draw_sheet([row[:MAX_COLUMNS] for row in rows[:MAX_ROWS]])))
    if len(rows) > MAX_ROWS or any(len(row) > MAX_COLUMNS for row in rows):
        shown = f"at most {MAX_ROWS} rows of at most {MAX_COLUMNS} thumbnails"
        print(f"mae: {path} shows {shown}; --format json has everything", file=sys.stderr)
