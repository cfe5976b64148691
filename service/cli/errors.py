"""Errors of commands, and the sentences that report them to the user."""

from __future__ import annotations

from service.errors import ServiceError

ONLY_IMAGE = "image 0"
"""How the service names the only image of a request in its errors."""


class CommandError(Exception):
    """A mistake that the user can correct; the message is one sentence that names it."""


class VectorFileError(CommandError):
    """A file of vectors cannot be read, or must not be added to."""


def describe_error(error: Exception) -> str:
    """The sentence for an error of a command."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def describe_file_error(path: str, error: OSError | ServiceError) -> str:
    """The sentence for an error of one image file; it names `path` where the service says "image 0"."""
    text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return text.replace(ONLY_IMAGE, path, 1) if ONLY_IMAGE in text else f"{path}: {text}"
