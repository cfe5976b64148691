"""Images in folders: the files to try, and the class that a folder stands for."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from model.images.open_image import readable_suffixes
from model.images.packs import find_packed_images, is_pack


def find_images(paths: Sequence[Path]) -> tuple[list[str], list[tuple[str, str]]]:
    """Finds images to try: files as they are named, in folders, at any depth, files with an image's suffix, and packs.

    Returns:
        The images, each listed once, those of a folder ordered by name; and the paths that cannot be tried, with the
        reason. Those in packs are `PackedImage`.

    Raises:
        FileNotFoundError: one of `paths` does not exist.
        PackError: a pack cannot be read.
    """
    candidates: dict[str, None] = {}
    refused: list[tuple[str, str]] = []
    for path in paths:
        if path.is_dir():
            candidates |= dict.fromkeys(_walk(path, refused))
        elif is_pack(path):
            candidates |= dict.fromkeys(find_packed_images(path))
        elif path.exists():
            candidates[str(path)] = None
        else:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    images = [image for image in candidates if _is_text(image)]
    undecodable = [os.fsencode(image).decode(errors="replace") for image in candidates if not _is_text(image)]
    return images, [*refused, *((image, "its name is not UTF-8") for image in undecodable)]


class ClassFolderError(ValueError):
    """A folder of classes that cannot be used; the message is one sentence that says why."""


class LabelledImages(NamedTuple):
    """Images and their classes."""

    paths: list[str]
    """Paths of the images, ordered by name."""
    labels: list[int]
    """The class of each image, an index into `classes`."""
    classes: tuple[str, ...]
    """Names of the classes, sorted."""
    refused: list[tuple[str, str]]
    """Paths that cannot be tried, with the reason."""


def labelled_images(folder: Path, classes: Sequence[str] | None = None) -> LabelledImages:
    """Finds the images of a folder of classes.

    An image's class is the path of its own folder relative to `folder` (`birds`, `birds/owl`).

    Args:
        folder: searched to any depth, as `find_images` does; or a pack of such a folder.
        classes: the classes to number by, for a second folder with the same classes; by default those in `folder`.

    Raises:
        FileNotFoundError, NotADirectoryError: `folder` is no folder.
        PackError: as `find_images`.
        ClassFolderError: an image lies in `folder` itself or in a class that is not among `classes`, or there is none.
    """
    if folder.exists() and not folder.is_dir() and not is_pack(folder):
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
    label_of = {name: label for label, name in enumerate(known)}
    for path, name in zip(paths, names, strict=True):
        if name not in label_of:
            raise ClassFolderError(f"{path} is of the class {name!r}, which is not among the {len(known)} known ones")
    return LabelledImages(paths, [label_of[name] for name in names], known, refused)


def _walk(folder: Path, refused: list[tuple[str, str]]) -> Iterator[str]:
    """Image files in `folder` at any depth; folders that cannot be read are added to `refused`."""

    def refuse(error: OSError) -> None:
        refused.append((str(error.filename), error.strerror or str(error)))

    suffixes = readable_suffixes()
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in suffixes:
                yield str(Path(parent, name))


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
