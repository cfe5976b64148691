"""Images on the disk: files, folders, patterns and packs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from model.images.folders import LeftOut, walk_images
from model.images.packs import PackedImage, find_packed_images
from model.images.regular_file import read_regular_file, refusal, special_kind
from service.cli.image_sources.entry import ImageEntry, is_text


def resolved_path(path: str) -> str:
    """The absolute path without links: which file `path` names, whatever the current folder is."""
    return os.fsencode(os.path.realpath(path)).decode(errors="backslashreplace")


class LocalFiles:
    """Makes entries of paths; the folder of the last path is kept, since to resolve links takes time."""

    def __init__(self) -> None:
        """Without a folder."""
        self._folder: tuple[str, str] | None = None

    def entry(self, path: str) -> ImageEntry:
        """The entry of the file at `path`, which need not be an image."""
        if not is_text(path):
            shown = os.fsencode(path).decode(errors="replace")
            return ImageEntry.refused(shown, resolved_path(path), "its name is not UTF-8")
        file = self._resolve(path)
        if (kind := special_kind(path)) is not None:
            return ImageEntry.refused(path, file, refusal(kind))
        try:
            status = os.stat(path)
        except OSError:  # reading will say why
            return ImageEntry(path, file, None, None, partial(read_regular_file, path))
        read = partial(read_regular_file, path)
        return ImageEntry(path, file, status.st_size, status.st_mtime_ns // 1000, read, is_portable=True)

    def in_folder(self, folder: Path, left_out: LeftOut) -> Iterator[ImageEntry]:
        """The images in a folder at any depth, and entries of the folders that cannot be read."""
        refused: list[tuple[str, str]] = []
        for path in walk_images(folder, refused, left_out):
            yield from self._refused(refused)
            yield self.entry(path)
        yield from self._refused(refused)

    def in_pack(self, pack: Path) -> Iterator[ImageEntry]:
        """The images of a pack; their time of change is the pack's.

        Raises:
            PackError: the pack cannot be read.
        """
        modified = pack.stat().st_mtime_ns // 1000
        for image in find_packed_images(pack):
            yield packed_entry(image, self._resolve(str(image)), modified)

    def _resolve(self, path: str) -> str:
        folder, name = os.path.split(path)
        if name in ("", ".", "..") or os.path.islink(path):
            return resolved_path(path)
        if self._folder is None or self._folder[0] != folder:
            self._folder = folder, os.path.realpath(folder)
        return os.fsencode(os.path.join(self._folder[1], name)).decode(errors="backslashreplace")

    def _refused(self, refused: list[tuple[str, str]]) -> Iterator[ImageEntry]:
        while refused:
            path, reason = refused.pop(0)
            shown = os.fsencode(path).decode(errors="replace")
            yield ImageEntry.refused(shown, resolved_path(path), reason)


def packed_entry(image: PackedImage, file: str, modified: int) -> ImageEntry:
    """The entry of an image in a pack."""
    return ImageEntry(str(image), file, image.archive.getinfo(image.member).file_size, modified, image.read_bytes)
