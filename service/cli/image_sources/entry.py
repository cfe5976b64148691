"""One image of a listing."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """An image that was found but not read yet, or the reason why it cannot be tried.

    Attributes:
        path: as the user named it, or what lies in it; without credentials.
        file: recognises the image from everywhere: the absolute path without links, the URL, or for a member of an
            archive `ARCHIVE!MEMBER`.
        size: bytes; None if the source does not say.
        modified: time of change in microseconds since 1970 (UTC); None if the source does not say.
        read: returns the bytes of the image's file; raises OSError, where that is an `ImageUnreadable` or of the disk.
        problem: why it cannot be tried; "" if it can.
        is_remote: whether reading waits for a network and hardly needs a CPU.
        is_portable: whether another process may call `read`, to which it is pickled.
        in_sequence: whether `read` must be called before the next entry is taken, or never.
    """

    path: str
    file: str
    size: int | None
    modified: int | None
    read: Callable[[], bytes]
    problem: str = ""
    is_remote: bool = False
    is_portable: bool = False
    in_sequence: bool = False

    @classmethod
    def refused(cls, path: str, file: str, problem: str) -> ImageEntry:
        """An entry of what cannot be tried."""
        return cls(path, file, None, None, bytes, problem)


class ImageUnreadable(OSError):
    """An image's bytes cannot be had; `strerror` says why, without credentials."""

    def __init__(self, reason: str) -> None:
        """`reason` is a phrase without a subject."""
        super().__init__(errno.EIO, reason)


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
