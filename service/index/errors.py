"""What can go wrong with an index of images; each message is one sentence that names the index."""

from __future__ import annotations


class ImageIndexError(Exception):
    """An index cannot be used: LanceDB is not installed, or the index is damaged, locked or no index of ours."""


class MissingIndex(ImageIndexError):
    """There is no index at the path."""


class ForeignSpace(ImageIndexError):
    """The vectors of an index lie in another vector space than those that would be compared with it."""
