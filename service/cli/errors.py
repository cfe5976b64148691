"""Errors of commands, and the sentences that report them to the user."""

from __future__ import annotations

from service.errors import ServiceError


class CommandError(Exception):
    """A mistake that the user can correct; the message is one sentence that names it."""


class VectorFileError(CommandError):
    """A file of vectors cannot be read, or must not be added to."""


def describe_error(error: Exception) -> str:
    """The sentence for an error of a command."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return getattr(error, "strerror", None) or str(error)


def describe_file_error(path: str, error: OSError | ServiceError) -> str:
    """The sentence for an error of one image file; it names `path` where the service says "image 0" or its number."""
    if isinstance(error, OSError):
        return f"{path}: {error.strerror or error}"
    name, text = f"image {error.details.get('image', 0)}", str(error)
    return text.replace(name, path, 1) if name in text else f"{path}: {text}"
