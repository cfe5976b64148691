"""Files that commands read and write."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from service.commands.errors import CommandError

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".avif", ".gif", ".tif", ".tiff")
)
"""Of the formats in `service.images.FORMATS`, in lower case."""


def find_images(paths: list[Path]) -> tuple[list[str], list[tuple[str, str]]]:
    """Images to try: files as they are given, folders searched to any depth by suffix, in the order of names.

    Returns:
        The images, each once, and what cannot be tried, with the reason.

    Raises:
        CommandError: one of `paths` does not exist.
    """
    found: dict[str, None] = {}
    refused: list[tuple[str, str]] = []
    for path in paths:
        if path.is_dir():
            found |= dict.fromkeys(_inside(path, refused))
        elif path.exists():
            found[str(path)] = None
        else:
            raise CommandError(f"{path} does not exist")
    images = [image for image in found if _is_text(image)]
    odd = [os.fsencode(image).decode(errors="replace") for image in found if not _is_text(image)]
    return images, [*refused, *((image, "its name is not UTF-8") for image in odd)]


def require_folder(output: Path) -> None:
    """Raises unless the folder of an output exists.

    Raises:
        CommandError: it does not.
    """
    if not output.parent.is_dir():
        raise CommandError(f"there is no folder {output.parent}")


def write_output(path: Path, data: bytes) -> None:
    """Writes a whole file at once or not at all; `-` is standard output.

    A device or a pipe is written to, never replaced.
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


def _inside(folder: Path, refused: list[tuple[str, str]]) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        refused.append((str(error.filename), error.strerror or str(error)))

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                yield str(Path(parent, name))


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
