"""All images that the arguments of a command name, one after the other."""

from __future__ import annotations

import errno
import glob
import io
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from model.images.folders import LeftOut
from model.images.packs import is_pack
from service.cli.errors import CommandError
from service.cli.image_sources.archives import describe_archive_error, entries_in_archive, is_archive
from service.cli.image_sources.entry import ImageEntry
from service.cli.image_sources.local import LocalFiles, resolved_path
from service.cli.image_sources.remote import WILDCARDS, RemoteFiles, is_url, without_credentials


class Listing:
    """Iterates over the images of files, folders, patterns, packs, archives and URLs, in the order of the arguments.

    Nothing is kept of an image once the next one is taken, so that a million of them need no memory; the names of one
    folder are, since they are sorted.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        """For the arguments of a command.

        Raises:
            FileNotFoundError: one of them does not exist on the disk, or matches nothing.
            CommandError: one of them is a URL that cannot be read here.
        """
        self.left_out = LeftOut()
        """What was left out until now."""
        self._local = LocalFiles()
        self._remote: dict[str, RemoteFiles] = {}
        self._paths = list(paths)
        for path in self._paths:
            if is_url(path):
                self._files_of(path)
            elif not os.path.lexists(path) and not _matches(path):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def __iter__(self) -> Iterator[ImageEntry]:
        """The images; each that an argument names twice comes twice.

        Raises:
            CommandError: a URL names nothing, or cannot be listed.
            PackError: a pack cannot be read.
        """
        self.left_out = LeftOut()
        for path in self._paths:
            if is_url(path):
                yield from self._files_of(path).entries(path, self.left_out)
            elif os.path.lexists(path):
                yield from self._on_disk(path)
            else:
                for match in _matches(path):
                    yield from self._on_disk(match)

    def count(self) -> int | None:
        """How many images there are, if that can be said without reading archives or asking a server."""
        if any(is_url(path) or is_archive(path) or _is_pattern(path) for path in self._paths):
            return None
        return sum(1 for _ in Listing(self._paths))

    def is_gone(self, file: str) -> bool:
        """Whether a file that was not found lies where an argument leads, and does not exist any more.

        What a pattern matches in a bucket is not asked for again, so such a file is never called gone.
        """
        covering = [path for path in self._paths if _covers(path, file)]
        if not covering or all(is_url(path) and WILDCARDS.search(path) for path in covering):
            return False
        return not os.path.lexists(file)

    def describe(self) -> str:
        """The arguments, for a sentence."""
        return ", ".join(without_credentials(path) if is_url(path) else path for path in self._paths)

    def _on_disk(self, path: str) -> Iterator[ImageEntry]:
        if os.path.isdir(path):
            yield from self._local.in_folder(Path(path), self.left_out)
        elif is_pack(Path(path)):
            yield from self._local.in_pack(Path(path))
        elif is_archive(path) and os.path.isfile(path):
            opened = partial(io.FileIO, path)
            file = resolved_path(path)
            yield from entries_in_archive(path, file, opened, self.left_out, describe_archive_error, path)
        else:
            yield self._local.entry(str(Path(path)))

    def _files_of(self, url: str) -> RemoteFiles:
        scheme = url.split("://")[0]
        if scheme not in self._remote:
            self._remote[scheme] = RemoteFiles(url)
        return self._remote[scheme]


def require_images(listing: Listing) -> None:
    """Checks that a listing has an image, or something that is refused by name.

    Raises:
        CommandError: it has none.
    """
    if next(iter(listing), None) is None:
        sentence = f"there are no images in {listing.describe()}"
        raise CommandError("; ".join(filter(None, [sentence, listing.left_out.sentence])))


def _is_pattern(path: str) -> bool:
    return WILDCARDS.search(path) is not None and not os.path.lexists(path)


def _matches(pattern: str) -> list[str]:
    """What a pattern matches on the disk, sorted; `**` stands for folders at any depth."""
    return sorted(glob.iglob(pattern, recursive=True)) if _is_pattern(pattern) else []


def _covers(path: str, file: str) -> bool:
    """Whether `file` lies in the folder, archive or pack at `path`, is that file, or begins as a pattern does."""
    if is_url(path):
        place = without_credentials(path)
        is_pattern = not place.startswith("http") and WILDCARDS.search(place) is not None
    else:
        is_pattern = _is_pattern(path)
        place = resolved_path(path if not is_pattern else os.path.dirname(WILDCARDS.split(path)[0]) or ".")
    if is_pattern and is_url(path):
        return file.startswith(WILDCARDS.split(place)[0])
    return file == place or file.startswith((place.rstrip("/") + "/", place + "!"))
