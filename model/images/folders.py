"""Images in folders: the files to try, the files that are left out, and the class that a folder stands for."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from model.images.open_image import HEIF_HINT, HEIF_SUFFIXES, readable_suffixes
from model.images.packs import find_packed_images, is_pack
from model.images.regular_file import refusal, special_kind

SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)
"""Folders that archives, file servers and operating systems make beside the user's own."""
MAX_SUFFIXES = 5
"""Suffixes that a sentence names."""


@dataclass
class LeftOut:
    """What a search for images has left out.

    Attributes:
        hidden: number of hidden files and folders, whose names begin with a dot, and of `SYSTEM_FOLDERS`.
        loops: number of linked folders that lead back to a folder that they are in.
        formats: number of files of formats that are not read, by suffix.
        special: number of FIFOs, sockets and devices, by kind.
    """

    hidden: int = 0
    loops: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    special: Counter[str] = field(default_factory=Counter)

    @property
    def sentence(self) -> str:
        """What was left out, in words; nothing if nothing was."""
        parts = []
        if self.formats:
            common = self.formats.most_common(MAX_SUFFIXES)
            named = [
                f"{count} {suffix or 'without a suffix'}{HEIF_HINT if suffix in HEIF_SUFFIXES else ''}"
                for suffix, count in common
            ]
            more = ["…"] if len(self.formats) > MAX_SUFFIXES else []
            files = _count(self.formats.total(), "file")
            parts.append(f"{files} of formats that are not read ({', '.join(named + more)})")
        parts += [_count(count, kind) for kind, count in sorted(self.special.items())]
        if self.hidden:
            parts.append(f"{self.hidden} hidden or system {'entry' if self.hidden == 1 else 'entries'}")
        if self.loops:
            parts.append(f"{_count(self.loops, 'link')} in a loop")
        return f"left out: {', '.join(parts)}" if parts else ""


class FoundImages(NamedTuple):
    """The result of a search for images."""

    images: list[str]
    """Paths of the images, each listed once, those of a folder ordered by name."""
    refused: list[tuple[str, str]]
    """Paths that cannot be tried, with the reason."""
    left_out: LeftOut
    """Files and folders inside the searched folders that are not tried."""


def find_images(paths: Sequence[Path]) -> FoundImages:
    """Finds images to try: files as they are named, in folders, at any depth, files with an image's suffix, and packs.

    Those in packs are `PackedImage`. Linked folders are searched like others. Hidden files and folders are left out
    unless they are named in `paths`. FIFOs, sockets and devices are left out, and refused if they are named.

    Raises:
        FileNotFoundError: one of `paths` does not exist.
        PackError: a pack cannot be read.
    """
    candidates: dict[str, None] = {}
    refused: list[tuple[str, str]] = []
    left_out = LeftOut()
    for path in paths:
        if path.is_dir():
            candidates |= dict.fromkeys(walk_images(path, refused, left_out))
        elif is_pack(path):
            candidates |= dict.fromkeys(find_packed_images(path))
        elif (kind := special_kind(path)) is not None:
            refused.append((str(path), refusal(kind)))
        elif path.exists():
            candidates[str(path)] = None
        else:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    images = [image for image in candidates if _is_text(image)]
    undecodable = [os.fsencode(image).decode(errors="replace") for image in candidates if not _is_text(image)]
    return FoundImages(images, [*refused, *((image, "its name is not UTF-8") for image in undecodable)], left_out)


def walk_images(folder: Path, refused: list[tuple[str, str]], left_out: LeftOut) -> Iterator[str]:
    """Image files in `folder` at any depth: its own files first, then those of its folders, each by name.

    Args:
        folder: the folder.
        refused: gets folders that cannot be read, with the reason.
        left_out: counts what is not tried.
    """
    return _walk(folder, (), refused, left_out)


def count_left_out(name: str, left_out: LeftOut) -> bool:
    """Whether an archive's or a bucket's file `name`, whose parts `/` separates, is left out as a folder's would be."""
    parts = name.split("/")
    suffix = os.path.splitext(parts[-1])[1].lower()
    if any((part.startswith(".") and part not in (".", "..")) or part in SYSTEM_FOLDERS for part in parts):
        left_out.hidden += 1
    elif suffix not in readable_suffixes():
        left_out.formats[suffix] += 1
    else:
        return False
    return True


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
    left_out: LeftOut = LeftOut()
    """Files and folders that are not tried."""


def labelled_images(folder: Path, classes: Sequence[str] | None = None) -> LabelledImages:
    """Finds the images of a folder of classes.

    Each folder inside `folder` is a class with all images in it, at any depth, as for torchvision's ImageFolder; but
    one without images is none.

    Args:
        folder: searched as `find_images` does; or a pack of such a folder.
        classes: the classes to number by, for a second folder with the same classes; by default those in `folder`.

    Raises:
        FileNotFoundError, NotADirectoryError: `folder` is no folder.
        PackError: as `find_images`.
        ClassFolderError: an image lies in `folder` itself or in a class that is not among `classes`, or there is none.
    """
    if folder.exists() and not folder.is_dir() and not is_pack(folder):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    paths, refused, left_out = find_images([folder])
    if not paths:
        raise ClassFolderError("; ".join(filter(None, [f"{folder} holds no images", left_out.sentence])))
    inside = [Path(path).relative_to(folder).parts for path in paths]
    stray = next((path for path, parts in zip(paths, inside, strict=True) if len(parts) == 1), None)
    if stray is not None:
        raise ClassFolderError(f"{stray} lies in no class: expected a folder for each class inside {folder}")
    names = [parts[0] for parts in inside]
    known = tuple(sorted(set(names)) if classes is None else classes)
    label_of = {name: label for label, name in enumerate(known)}
    for path, name in zip(paths, names, strict=True):
        if name not in label_of:
            raise ClassFolderError(f"{path} is of the class {name!r}, which is not among the {len(known)} known ones")
    return LabelledImages(paths, [label_of[name] for name in names], known, refused, left_out)


def images_with_or_without_classes(folder: Path) -> LabelledImages:
    """Finds the images of a folder of classes, or of a folder of images alone, which then are all of one class.

    Raises:
        FileNotFoundError, NotADirectoryError, ClassFolderError: as `labelled_images`.
    """
    paths, refused, left_out = find_images([folder])
    if (folder.is_dir() or is_pack(folder)) and paths and all(Path(path).parent == folder for path in paths):
        return LabelledImages(paths, [0] * len(paths), (folder.name,), refused, left_out)
    return labelled_images(folder)


def _walk(
    folder: Path, parents: tuple[tuple[int, int], ...], refused: list[tuple[str, str]], left_out: LeftOut
) -> Iterator[str]:
    """See `walk_images`; `parents` has device and inode of the folders that `folder` is in."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        status = folder.stat()
    except OSError as error:
        refused.append((str(folder), error.strerror or str(error)))
        return
    parents = (*parents, (status.st_dev, status.st_ino))
    folders, suffixes = [], readable_suffixes()
    for entry in entries:
        if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
            left_out.hidden += 1
        elif entry.is_dir():
            folders.append(entry)
        elif not entry.is_file() and (kind := special_kind(entry.path)) is not None:
            left_out.special[kind] += 1
        elif (suffix := os.path.splitext(entry.name)[1].lower()) in suffixes:
            yield str(Path(folder, entry.name))
        else:
            left_out.formats[suffix] += 1
    for entry in folders:
        status = entry.stat()
        if (status.st_dev, status.st_ino) in parents:
            left_out.loops += 1
        else:
            yield from _walk(Path(folder, entry.name), parents, refused, left_out)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
