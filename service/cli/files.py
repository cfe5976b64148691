"""Output files of commands."""

from __future__ import annotations

import sys
from pathlib import Path

from model.atomic_write import atomic_write
from model.images.open_image import HEIF_SUFFIXES, SUFFIXES
from service.cli.errors import CommandError


def require_folder(output: Path) -> None:
    """Checks that the folder of an output exists.

    Raises:
        CommandError: the folder does not exist.
    """
    if not output.parent.is_dir():
        raise CommandError(f"there is no folder {output.parent}")


def require_png(output: Path) -> None:
    """Checks that an output's name does not end like that of a picture of another format.

    Raises:
        CommandError: the name ends so.
    """
    if output.suffix.lower() in (SUFFIXES | HEIF_SUFFIXES) - {".png"}:
        raise CommandError(f"{output}: pictures are written as PNG, so the name should end in .png")


def write_output(path: Path, data: bytes) -> None:
    """Writes the whole file at once or not at all; `-` is standard output.

    A device or a pipe is written to and never replaced.
    """
    if str(path) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    atomic_write(path, data)
