"""Images in folders: which files to try, and what class a folder stands for."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

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


class ClassFolderError(ValueError):
    """A folder of classes that cannot be used; one sentence says why."""


class Labelled(NamedTuple):
    """Images and their classes."""

    paths: list[str]
    """In the order of names."""
    labels: list[int]
    """Of each path, an index into `classes`."""
    classes: tuple[str, ...]
    """Sorted by name."""
    refused: list[tuple[str, str]]
    """What cannot be tried, with the reason."""


def labelled_images(folder: Path, classes: Sequence[str] | None = None) -> Labelled:
    """Images of a folder of classes: an image's class is its own folder, relative to `folder` (`birds`, `birds/owl`).

    Args:
        folder: searched to any depth, as `find_images` does.
        classes: those to number by, for a second folder of the same classes; by default those that are found.

    Raises:
        FileNotFoundError, NotADirectoryError: `folder` is no folder.
        ClassFolderError: an image lies in `folder` itself or in a class that is not among `classes`, or there is none.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    paths, refused = find_images([folder])
    if not paths:
        raise ClassFolderError(f"{folder} holds no images")
    names = [Path(path).parent.relative_to(folder).as_posix() for path in paths]
    if "." in names:
        raise ClassFolderError(
            f"{paths[names.index('.')]} lies in no class: expected a folder for each class inside {folder}"
        )
    known = tuple(sorted(set(names)) if classes is None else classes)
    places = {name: place for place, name in enumerate(known)}
    for path, name in zip(paths, names, strict=True):
        if name not in places:
            raise ClassFolderError(f"{path} is of the class {name!r}, which is not among the {len(known)} known ones")
    return Labelled(paths, [places[name] for name in names], known, refused)


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
