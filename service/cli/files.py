"""Output files of commands."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from service.cli.errors import CommandError


def require_folder(output: Path) -> None:
    """Checks that the folder of an output exists.

    Raises:
        CommandError: the folder does not exist.
    """
    if not output.parent.is_dir():
        raise CommandError(f"there is no folder {output.parent}")


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
