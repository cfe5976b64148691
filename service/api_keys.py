"""API keys as operators write them: in a setting, or in a file that only the service can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def split_keys(text: str) -> tuple[str, ...]:
    """The keys of a comma-separated text; blanks around a key are no part of it, and commas without a key do not count.

    Raises:
        ValueError: as `require_keys`.
    """
    return require_keys([key.strip() for key in text.split(",") if key.strip()])


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file of UTF-8 text, one per line; empty lines and blanks around a key are ignored.

    Raises:
        ValueError: the file cannot be read, or has no key; the message does not quote the file.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text in UTF-8") from None
    return require_keys([line.strip() for line in lines if line.strip()])


def require_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """`keys`, each once.

    Raises:
        ValueError: there is no key, or one is empty or cannot be sent in a header; the message does not quote it.
    """
    if not keys:  # or a slip of the pen would leave the service open
        raise ValueError("there is no key in it")
    for number, key in enumerate(keys, 1):
        if not key:
            raise ValueError(f"key {number} is empty")
        if not key.isprintable():  # bytes of the environment that are no UTF-8 arrive as surrogates
            raise ValueError(f"key {number} has a character that no header can hold")
    return tuple(dict.fromkeys(keys))
