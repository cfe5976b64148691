"""Outputs of `mae embed` as sources of an index."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from service.cli.errors import VectorFileError
from service.cli.image_sources.local import resolved_path
from service.cli.vector_files.reading import read_vectors
from service.cli.vector_files.space import VectorSpace
from service.index.changes import Changes, FoundFile, compare_files
from service.index.description import IndexDescription
from service.index.store import ImageIndex
from service.index.table import IndexRow
from service.parameters import EmbedParameters


class VectorSource:
    """An output of `mae embed`, which is read anew for each pass over it.

    Attributes:
        name: the absolute path without links.
        failed: number of its images that have no vector; known after `compare`.
    """

    def __init__(self, path: Path) -> None:
        """The output at `path`.

        Raises:
            VectorFileError: it is damaged, of an earlier version, or holds tokens.
        """
        self.path = path
        self.name = resolved_path(str(path))
        self.failed = 0
        self._last: dict[str, int] = {}
        space = read_vectors(path).space
        if space.space is None:
            raise VectorFileError(f"{path} was made by an earlier version, which did not name its space: embed it anew")
        if space.pool == "tokens":
            raise VectorFileError(f"{path} holds tokens, but an index needs one vector per image")
        self.description = describe_space(space)

    def compare(self, index: ImageIndex) -> Changes:
        """What differs between an index and this output, whose images are those that the index has from it."""
        stored = index.files()
        found, checksums = self._read_files()
        changes = compare_files(stored, found, lambda file, known: known.source == self.name)
        if checksums:  # neither size nor time tells whether these were replaced
            replaced = {file for file, checksum in _checksums(index) if checksums.get(file, checksum) != checksum}
            replaced -= {image.file for image in changes.replaced}
            changes.replaced += [image for image in found if image.file in replaced]
            changes.unchanged -= len(replaced)
        return changes

    def rows(self, files: Set[str]) -> Iterator[IndexRow]:
        """The rows of some images."""
        for number, record in enumerate(read_vectors(self.path).records):
            if record.vector is not None and record.file in files and self._last[record.file] == number:
                yield IndexRow(record.file, record.path, record.vector, record.size, record.modified, self.name)

    def _read_files(self) -> tuple[list[FoundFile], dict[str, int]]:
        """The images that have vectors, and the CRC-32 of those vectors whose files have no known size."""
        found: dict[str, FoundFile] = {}
        checksums: dict[str, int] = {}
        self.failed = 0
        for number, record in enumerate(read_vectors(self.path).records):
            found.pop(record.file, None)  # of several records of a file, the last is right
            if record.vector is None:
                self.failed += 1
                continue
            found[record.file] = FoundFile(record.file, record.path, record.size, record.modified)
            self._last[record.file] = number
            if record.size is None:
                checksums[record.file] = zlib.crc32(record.vector.astype("<f4").tobytes())
        return list(found.values()), checksums


def describe_space(space: VectorSpace) -> IndexDescription:
    """The description of an index of vectors that `mae embed` has made."""
    assert space.space is not None
    chosen: dict[str, Any] = {
        "pool": space.pool,
        "whiten": space.whiten,
        "dimensions": space.dimensions,
        "normalize": space.normalize,
    }
    if space.patches is not None:
        chosen["patches"] = space.patches
    elif space.keep < 1:
        chosen |= {"keep": space.keep, "seed": space.seed}
    return IndexDescription(
        space=space.space, model=space.model, dim=space.dim, parameters=EmbedParameters.model_validate(chosen)
    )


def _checksums(index: ImageIndex) -> Iterator[tuple[str, int]]:
    for files, _, vectors in index.vectors():
        for file, vector in zip(files, vectors, strict=True):
            yield file, zlib.crc32(vector.astype("<f4").tobytes())
