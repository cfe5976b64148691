"""What has changed since an index was written: images that are new, replaced, or gone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from service.index.table import StoredFile


class FoundFile(NamedTuple):
    """An image that was found now."""

    file: str
    """The absolute path without links."""
    path: str
    """As the user gave it."""
    size: int | None
    """Bytes; None where they are not known."""
    modified: int | None
    """Time of the last change in microseconds since 1970, UTC; None where it is not known."""


@dataclass
class Changes:
    """The difference between an index and what was found.

    Attributes:
        new: images that the index does not have.
        replaced: images whose size or time of change differ from those in the index.
        gone: files in the index that are no longer there.
        unchanged: number of the other images that were found.
    """

    new: list[FoundFile] = field(default_factory=list)
    replaced: list[FoundFile] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    unchanged: int = 0


def compare_files(
    stored: Mapping[str, StoredFile], found: Iterable[FoundFile], belongs: Callable[[str, StoredFile], bool]
) -> Changes:
    """Compares what was found with an index.

    Args:
        stored: the images in the index.
        found: the images that were found; of several with one file, the first counts.
        belongs: whether a stored image would have been found if it were still there.
    """
    changes = Changes()
    seen: set[str] = set()
    for image in found:
        if image.file in seen:
            continue
        seen.add(image.file)
        before = stored.get(image.file)
        if before is None:
            changes.new.append(image)
        elif (before.size, before.modified) != (image.size, image.modified):
            changes.replaced.append(image)
        else:
            changes.unchanged += 1
    changes.gone = [file for file, known in stored.items() if file not in seen and belongs(file, known)]
    return changes


def is_inside(file: str, roots: Set[str]) -> bool:
    """Whether the path `file` is one of `roots` or lies in one of them, at any depth."""
    while file not in roots:
        parent = file.rpartition("/")[0]
        if not parent:
            return "/" in roots and file.startswith("/")
        file = parent
    return True
