"""Images in .tar archives, such as the shards of WebDataset, in the order of the archive."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO

from model.images.folders import LeftOut, count_left_out
from service.cli.image_sources.entry import ImageEntry, ImageUnreadable, is_text

PLAIN_SUFFIX = ".tar"
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(name: str) -> bool:
    """Whether a file is named like an archive."""
    return name.lower().endswith((PLAIN_SUFFIX, *COMPRESSED_SUFFIXES))


def entries_in_archive(
    path: str,
    file: str,
    open_archive: Callable[[], IO[bytes]],
    left_out: LeftOut,
    describe: Callable[[Exception], str],
    disk_path: str | None = None,
) -> Iterator[ImageEntry]:
    """The images of an archive, and an entry of the archive itself if it ends too early or is none.

    Members of a plain archive on the disk are read at their places, several at a time. Those of others are read in
    their order, so that a compressed archive is decompressed once, and a remote one is fetched once.

    Args:
        path: the archive, as it was named.
        file: recognises the archive from everywhere.
        open_archive: opens it for reading bytes.
        left_out: counts members that are not tried.
        describe: the sentence for an error of reading.
        disk_path: where it is on the disk; None if it is elsewhere.
    """
    last = ""
    try:
        with open_archive() as stream:
            is_plain = path.lower().endswith(PLAIN_SUFFIX) and stream.seekable()
            # "r|*" never goes back; "r:" skips what is not read.
            with tarfile.open(fileobj=stream, mode="r:" if is_plain else "r|*") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # else it would keep all of them
                    if member.isdir() or _is_left_out(member, left_out):
                        continue
                    last = member.name
                    yield _entry(path, file, archive, member, disk_path if is_plain else None)
    except GeneratorExit:
        raise
    except Exception as error:  # a file system of fsspec raises its own kinds
        where = f" behind its member {last.encode(errors='replace').decode()}" if last else ""
        reason = "its end is missing" if isinstance(error, (tarfile.TarError, EOFError)) and last else describe(error)
        yield ImageEntry.refused(path, file, f"the archive cannot be read{where}: {reason}")


def describe_archive_error(error: Exception) -> str:
    """The phrase for an error of reading an archive on the disk."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "it is no archive of the kind that its name says, or it is damaged"


def _is_left_out(member: tarfile.TarInfo, left_out: LeftOut) -> bool:
    if not member.isfile():
        left_out.special["link" if member.issym() or member.islnk() else "device"] += 1
        return True
    return count_left_out(member.name, left_out)


def _entry(
    path: str, file: str, archive: tarfile.TarFile, member: tarfile.TarInfo, disk_path: str | None
) -> ImageEntry:
    """The entry of a member; `disk_path` is the archive if it may be read at any place."""
    name = member.name
    if not is_text(name):
        shown = name.encode(errors="replace").decode()
        escaped = name.encode(errors="backslashreplace").decode()
        return ImageEntry.refused(f"{path}!{shown}", f"{file}!{escaped}", "its name is not UTF-8")
    names, modified = (f"{path}!{name}", f"{file}!{name}"), round(member.mtime * 1e6)
    if member.sparse is not None:
        return ImageEntry.refused(*names, "it is a sparse member")
    if disk_path is None:
        return ImageEntry(*names, member.size, modified, partial(_read_next, archive, member), in_sequence=True)
    read = partial(_read_at, disk_path, member.offset_data, member.size)
    return ImageEntry(*names, member.size, modified, read, is_portable=True)


def _read_next(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of the member at which the archive stands."""
    try:
        stream = archive.extractfile(member)
        assert stream is not None
        data = stream.read()
    except (tarfile.TarError, EOFError):
        raise ImageUnreadable("the archive ends within it") from None
    return _require_whole(data, member.size)


def _read_at(path: str, offset: int, size: int) -> bytes:
    with open(path, "rb") as archive:
        return _require_whole(os.pread(archive.fileno(), size, offset), size)


def _require_whole(data: bytes, size: int) -> bytes:
    if len(data) < size:
        raise ImageUnreadable("the archive ends within it")
    return data
