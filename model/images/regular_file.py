"""Reading regular files alone: to open a FIFO waits for a writer, perhaps for ever."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

KINDS = {
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFDIR: "folder",
}


def special_kind(path: str | Path) -> str | None:
    """What a path leads to ("FIFO", "socket", "device", "folder"), links followed; None for a regular file or none."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    return _kind_of(mode)


def refusal(kind: str) -> str:
    """Why something of `kind` is not read."""
    return f"it is a {kind} and no regular file"


def read_regular_file(path: str | Path) -> bytes:
    """The content of a file, links followed.

    The kind is looked at before opening, since opening a device may do something, and again afterwards, since the file
    may have been replaced meanwhile. Opening does not wait.

    Raises:
        OSError: the file cannot be read, or is a FIFO, a socket, a device or a folder.
    """
    _require_regular(os.stat(path).st_mode, path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    with open(descriptor, "rb") as file:
        return file.read()


def _kind_of(mode: int) -> str | None:
    return None if stat.S_ISREG(mode) else KINDS.get(stat.S_IFMT(mode), "special file")


def _require_regular(mode: int, path: str | Path) -> None:
    kind = _kind_of(mode)
    if kind == "folder":
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if kind is not None:
        raise OSError(errno.EINVAL, refusal(kind), str(path))
