"""Images that fsspec reaches: in buckets (s3://, gs://), at https:// addresses, and wherever else it has a file system.

What fsspec's file systems say in their errors may hold keys and signed addresses. So their words are never passed on:
`describe_remote_error` has words of its own.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from hashlib import blake2b
from typing import IO, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from model.images.folders import LeftOut, count_left_out
from service.cli.errors import CommandError
from service.cli.image_sources.archives import entries_in_archive, is_archive
from service.cli.image_sources.entry import ImageEntry, ImageUnreadable

URL = re.compile("[A-Za-z][A-Za-z0-9+.-]*://")
WILDCARDS = re.compile(r"[*?\[]")
HTTP = ("http", "https")
TIMES = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")
"""The names by which file systems give the time of change."""
SIGNATURES = re.compile(
    r"(?i)x-(amz|goog|oss|cos)-.*|signature|expires|awsaccesskeyid|googleaccessid|key-pair-id|policy"
    r"|s[aeiprtv]|sig|sip|spr|sr[t]?|sk(oid|tid|t|e|s|v)|.*(token|secret|password|key|auth).*"
)
"""Query parameters that sign an address or let somebody in, and so say nothing of which file it is."""


class RemoteFiles:
    """Finds and reads images by their URLs."""

    def __init__(self, url: str) -> None:
        """Opens the file system of a URL; nothing is fetched yet.

        Raises:
            CommandError: fsspec or its file system for this kind of URL is not installed, or there is no such kind.
        """
        self._protocol = url.split("://")[0].lower()
        self._is_http = self._protocol in HTTP
        try:
            import fsspec

            # Listings are not kept, since those of a large bucket would fill the memory.
            options = {} if self._is_http else {"use_listings_cache": False}
            self._files: Any = fsspec.filesystem(self._protocol, skip_instance_cache=True, **options)
        except ImportError:
            raise CommandError(
                f"reading {self._protocol}:// needs packages that are not installed: pip install 'mae-serve[bucket]'"
            ) from None
        except ValueError:
            raise CommandError(f"{self._protocol}:// is no kind of address that fsspec knows") from None

    def entries(self, url: str, left_out: LeftOut) -> Iterator[ImageEntry]:
        """The images that a URL names: one file, a folder at any depth, a pattern, or an archive.

        Raises:
            CommandError: there is nothing, or it cannot be listed.
        """
        if self._is_http:
            if url.endswith("/"):
                raise CommandError(f"{without_credentials(url)} is a folder, which web servers cannot list: name files")
            yield from self._file(url, None, left_out)
            return
        path = url.split("://", 1)[1]
        try:
            if WILDCARDS.search(path) and not self._files.exists(path):
                found = self._files.glob(path, detail=True)
                listed = sorted((name, *_facts(info)) for name, info in found.items() if info["type"] == "file")
                if not listed:
                    raise FileNotFoundError
            elif (info := self._files.info(path.rstrip("/")))["type"] == "directory":
                yield from self._in_folder(info["name"], info["name"].rstrip("/") + "/", left_out)
                return
            else:
                listed = [(info["name"], *_facts(info))]
        except Exception as error:  # each file system of fsspec raises its own kinds
            raise CommandError(f"{without_credentials(url)}: {describe_remote_error(error)}") from None
        for name, size, modified in listed:
            yield from self._file(name, (size, modified), left_out)

    def _in_folder(self, folder: str, root: str, left_out: LeftOut) -> Iterator[ImageEntry]:
        """The images below `folder`, its own first; `root` begins the names that a listing may leave out.

        Consoles of buckets make an empty object `folder/` for a folder, which is neither an image nor a folder in it.
        """
        try:
            listed = sorted((info["name"], info["type"], *_facts(info)) for info in self._files.ls(folder, detail=True))
        except Exception as error:
            yield ImageEntry.refused(self._url(folder), self._url(folder), describe_remote_error(error))
            return
        for name, kind, size, modified in listed:
            inside = name.removeprefix(root)
            is_marker = name.rstrip("/") == folder.rstrip("/")
            if kind != "directory" and not is_marker and inside and not count_left_out(inside, left_out):
                yield self._entry(name, size, modified)
        for name, kind, _, _ in listed:
            if kind == "directory" and name.rstrip("/") != folder.rstrip("/"):
                yield from self._in_folder(name, root, left_out)

    def _file(self, name: str, facts: tuple[int | None, int | None] | None, left_out: LeftOut) -> Iterator[ImageEntry]:
        if is_archive(urlsplit(name).path if self._is_http else name):
            url = self._url(name)
            opened = partial(self._open, name)
            yield from entries_in_archive(url.split("?")[0], url, opened, left_out, describe_remote_error)
        else:
            yield self._entry(name, *(facts or (None, None)))

    def _entry(self, name: str, size: int | None, modified: int | None) -> ImageEntry:
        url = self._url(name)
        return ImageEntry(url, url, size, modified, partial(self._read, name), is_remote=True)

    def _url(self, name: str) -> str:
        return without_credentials(name if self._is_http else f"{self._protocol}://{name.lstrip('/')}")

    def _open(self, name: str) -> IO[bytes]:
        stream: IO[bytes] = self._files.open(name, "rb")
        return stream

    def _read(self, name: str) -> bytes:
        try:
            data: bytes = self._files.cat_file(name)
        except Exception as error:
            raise ImageUnreadable(describe_remote_error(error)) from None
        return data


def is_url(text: str) -> bool:
    """Whether a path is a URL."""
    return URL.match(text) is not None


def without_credentials(url: str) -> str:
    """A URL as it may be shown and stored: without user, password, and the signature of a signed address.

    Of another query, which may say which file it is, a digest stays.
    """
    scheme, rest = url.split("://", 1)
    place, slash, path = rest.partition("/")
    place = place.rpartition("@")[2]
    if scheme.lower() not in HTTP:
        return f"{scheme}://{place}{slash}{path}"
    parts = urlsplit(f"{scheme}://{place}{slash}{path}")
    kept = [(name, value) for name, value in parse_qsl(parts.query, True) if not SIGNATURES.fullmatch(name)]
    digest = f"?{blake2b(urlencode(kept).encode(), digest_size=6).hexdigest()}" if kept else ""
    return f"{parts.scheme}://{parts.netloc}{parts.path}{digest}"


def describe_remote_error(error: Exception) -> str:
    """Why something cannot be read or listed, in words that hold no credentials."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file or folder"
    if isinstance(error, PermissionError):
        return "access is refused"
    if isinstance(error, TimeoutError):
        return "there was no answer in time"
    if isinstance(status := getattr(error, "status", None), int):
        return f"the server answered with status {status}"
    if isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        return os.strerror(error.errno)
    if type(error).__name__ == "NoCredentialsError":
        return "there are no credentials for it"
    return f"it cannot be read ({type(error).__name__})"


def _facts(info: dict[str, Any]) -> tuple[int | None, int | None]:
    """Size in bytes and time of change in microseconds, as far as a file system gives them."""
    moment = next((info[name] for name in TIMES if info.get(name) is not None), None)
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if isinstance(moment, datetime):
        moment = moment.timestamp()
    return info.get("size"), None if moment is None else round(moment * 1e6)
