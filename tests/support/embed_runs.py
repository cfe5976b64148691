"""Runs of `mae embed` over the golden images, in processes that can be killed."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.held_commands import start_and_hold

NAMES = [f"squares/{index}.png" for index in range(8)]


def make_copies(squares: Path, each: int) -> None:
    """Makes the folder `many` with `each` copies of every golden image."""
    Path("many").mkdir()
    for source in squares.iterdir():
        for copy in range(each):
            os.link(source, f"many/{source.stem}-{copy:03}.png")


def start_and_store(output: str, environment: Mapping[str, str], records: int) -> subprocess.Popen[str]:
    """A run over `many`, which stands still when it has stored `records` records."""
    append = "service.cli.vector_files.journal.Journal.append"
    return start_and_hold(append, records, "embed", "many", "-o", output, environment=environment)
