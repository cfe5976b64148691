"""Images in folders: which files to try, and what class a folder stands for."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".avif", ".gif", ".tif", ".tiff")
)
"""Of the formats in `pictures.FORMATS`, in lower case."""


def find_images(paths: Sequence[Path]) -> tuple[list[str], list[tuple[str, str]]]:
    """Images to try: files as they are given, folders searched to any depth by suffix, in the order of names.

    Returns:
        The images, each once, and what cannot be tried, with the reason.

    Raises:
        FileNotFoundError: one of `paths` does not exist.
    """
    found: dict[str, None] = {}
    refused: list[tuple[str, str]] = []
    for path in paths:
        if path.is_dir():
            found |= dict.fromkeys(_inside(path, refused))
        elif path.exists():
            found[str(path)] = None
        else:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    images = [image for image in found if _is_text(image)]
    odd = [os.fsencode(image).decode(errors="replace") for image in found if not _is_text(image)]
    return images, [*refused, *((image, "its name is not UTF-8") for image in odd)]


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
