"""Tables for the terminal: the style that all of them share, and the plain table of names and values."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

TABLE_STYLE: Mapping[str, Any] = {"box": SIMPLE_HEAD, "title_justify": "left", "caption_justify": "left"}
WIDEST = 100_000
"""Characters of a line in a file or a pipe, at most."""


def add_number_columns(table: Table, *names: str) -> None:
    """Adds columns that are aligned to the right."""
    for name in names:
        table.add_column(name, justify="right")


def print_table(table: Table) -> None:
    """Prints a table on standard output; where that is no terminal, as wide as the table is, so that no path is cut."""
    console = Console(markup=False, highlight=False)
    if not sys.stdout.isatty():
        unbounded = console.options.update(width=WIDEST)
        console.width = max(
            console.width, console.measure(table, options=unbounded).maximum, cell_len(str(table.title))
        )
    console.print(table)


def print_values(rows: Iterable[tuple[str, str]]) -> None:
    """Prints names and their values on standard output, one pair per row."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    Console(markup=False, highlight=False).print(table)
