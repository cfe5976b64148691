"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4


def atomic_write(path: Path, data: bytes | memoryview, *, durable: bool = False) -> None:
    """Writes a whole file or none: a reader sees the old content or the new one, never a part.

    The data goes to a temporary file beside `path` first, which then takes its place. The temporary file is not made by
    `tempfile`, which would let nobody but its owner read it.

    Args:
        path: the file to make or replace; its folder exists.
        data: the whole content.
        durable: return only when the file would outlive a loss of power.

    Raises:
        OSError: the file cannot be written; a file that stood at `path` is unchanged. Its `filename` is `path`, not the
            temporary file.
    """
    temporary = path.with_name(f".{path.name}-{uuid4().hex}")  # unique among processes and threads that write `path`
    try:
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


def replace_file(path: Path, written: Path) -> None:
    """Moves a file that is written completely to `path`, and returns when it would outlive a loss of power.

    Args:
        path: the file to make or replace.
        written: the new file, on the same file system.
    """
    sync(written)
    os.replace(written, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Returns when the content of a file, or the names in a folder, would outlive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
