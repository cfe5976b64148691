"""LanceDB, which is imported on first use: its import takes more than a second of CPU time."""

from __future__ import annotations

from typing import Any

from service.index.errors import ImageIndexError


def import_lance() -> Any:
    """The package lancedb.

    Raises:
        ImageIndexError: it is not installed.
    """
    try:
        import lancedb
    except ImportError as error:
        raise ImageIndexError("an index of images needs LanceDB: pip install lancedb") from error
    return lancedb
