"""Writing a pack: each image of a folder scaled down and encoded as JPEG, into parts of a bounded size."""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Protocol
from uuid import uuid4
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from model.atomic_write import atomic_write
from model.images.errors import ImageError
from model.images.open_image import open_image
from model.images.packs import PACK_SUFFIX, PackError, PackList, Part, part_path
from model.images.regular_file import read_regular_file
from model.images.shrink import load_small

ENTRY_BYTES, END_BYTES = 30 + 46, 22 + 76
"""Bytes of a ZIP archive beside members and their names: for each member, whose name is there twice, and at the end
(the second summand is there with more than 65,535 members)."""
WORTHWHILE = 0.1
"""Share of an image's bytes that encoding it anew must save."""


class PackSummary(NamedTuple):
    """What was packed."""

    images: int
    """Number of images in the pack."""
    kept: int
    """Images whose bytes were kept, since encoding them anew would not have made them a tenth smaller."""
    parts: int
    """Number of parts."""
    bytes: int
    """Bytes of all parts."""


class _PackedFile(NamedTuple):
    """The file of an image as it is stored; `reason` instead where it cannot be read."""

    data: bytes = b""
    is_kept: bool = False
    reason: str = ""


class Progress(Protocol):
    """Receives the progress of packing."""

    def advance(self) -> None:
        """One more image is packed."""

    def skip(self, reason: str) -> None:
        """One more image cannot be packed."""


def write_pack(
    folder: Path,
    paths: Sequence[str],
    output: Path,
    *,
    side: int,
    quality: int,
    part_bytes: int,
    threads: int,
    progress: Progress,
) -> PackSummary:
    """Packs the images of a folder, which keep their order and their paths in it.

    All parts are written under temporary names first. The list, which makes the pack readable, comes last.

    Args:
        folder: the folder.
        paths: its images, as `find_images` gives them.
        output: the list of the pack, NAME.pack; the parts go beside it.
        side: short side in pixels that larger images are scaled down to.
        quality: JPEG quality, 1 to 95.
        part_bytes: largest size of a part, below 2 GB.
        threads: threads that decode and encode.
        progress: is told of each image.

    Raises:
        PackError: the output is not named NAME.pack or exists, no image can be read, or one is larger than a part.
        OSError: a file cannot be written.

    An exception of any kind, also of a signal, leaves neither a list nor a part.
    """
    require_new_pack(output)
    images = kept = 0
    parts = _PartWriter(output, part_bytes)
    try:
        for path, packed in zip(paths, _pack_files(paths, side, quality, threads), strict=True):
            if packed.reason:
                progress.skip(f"{path}: {packed.reason}")
                continue
            parts.add(Path(path).relative_to(folder).as_posix(), packed.data)
            images, kept = images + 1, kept + packed.is_kept
            progress.advance()
        if images == 0:
            raise PackError(f"no image in {folder} can be read")
        written = parts.finish()
        content = PackList(side=side, quality=quality, parts=written)
        atomic_write(output, content.model_dump_json(indent=1).encode() + b"\n", durable=True)
    finally:
        if not output.exists():
            parts.remove()
    return PackSummary(images, kept, len(written), sum(part.bytes for part in written))


def require_new_pack(output: Path) -> None:
    """Checks the path of a pack to be written.

    Raises:
        PackError: it is not named NAME.pack, or there is such a pack or a part of one.
    """
    if output.suffix != PACK_SUFFIX:
        raise PackError(f"{output} should end in {PACK_SUFFIX}")
    for path in (output, part_path(output, 0)):
        if path.exists():
            raise PackError(f"{path} exists: remove that pack first, or choose another name")


def encode_small(path: str, side: int, quality: int) -> tuple[bytes, bool]:
    """An image as JPEG, upright and with its short side scaled down to `side`; a smaller image is not enlarged.

    A JPEG that is upright and small already is kept as it is unless encoding it anew saves a tenth of its bytes: each
    encoding costs a little quality.

    Returns:
        The file, and whether it is the original one.

    Raises:
        ImageError: the image is damaged or cannot be read.
        OSError: the file cannot be read.
    """
    image = open_image(path)
    may_keep = image.format == "JPEG" and min(image.size) <= side and image.orientation == 1
    small, _ = load_small(image, side)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=quality, optimize=True)
    if may_keep and len(original := read_regular_file(path)) * (1 - WORTHWHILE) <= out.tell():
        return original, True
    return out.getvalue(), False


def _pack_files(paths: Iterable[str], side: int, quality: int, threads: int) -> Iterator[_PackedFile]:
    """Encodes the images in their order; threads are a little ahead."""

    def encode(path: str) -> _PackedFile:
        try:
            return _PackedFile(*encode_small(path, side, quality))
        except ImageError as error:
            return _PackedFile(reason=str(error))
        except OSError as error:
            return _PackedFile(reason=error.strerror or str(error))

    with ThreadPoolExecutor(threads, thread_name_prefix="pack") as pool:
        running: deque[Future[_PackedFile]] = deque()
        for path in paths:
            running.append(pool.submit(encode, path))
            if len(running) > 4 * threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


class _PartWriter:
    """Parts under temporary names, each full before the next one begins."""

    def __init__(self, pack: Path, part_bytes: int) -> None:
        self._pack = pack
        self._part_bytes = part_bytes
        self._mark = uuid4().hex
        self._archive: ZipFile | None = None
        self._sizes: list[tuple[int, int]] = []  # bytes and images of each part
        self._named = 0  # parts that have their names

    def add(self, name: str, data: bytes) -> None:
        """Adds an image to the last part or, if that is full, to a new one.

        Raises:
            PackError: the image is larger than a part may be.
            OSError: it cannot be written; the error names the pack.
        """
        length = len(data) + ENTRY_BYTES + 2 * len(name.encode())
        if length + END_BYTES > self._part_bytes:
            raise PackError(f"{name} needs {length + END_BYTES} bytes, and a part has {self._part_bytes} at most")
        if self._archive is None or self._sizes[-1][0] + length > self._part_bytes:
            self._close()
            self._sizes.append((END_BYTES, 0))
            self._archive = ZipFile(self._temporary(len(self._sizes) - 1), "w", ZIP_STORED)
        size, images = self._sizes[-1]
        self._sizes[-1] = size + length, images + 1
        # An entry without a date (1980-01-01), so that the same images give the same bytes.
        with self._name_errors():
            self._archive.writestr(ZipInfo(name), data)

    def finish(self) -> tuple[Part, ...]:
        """Gives the parts their names.

        Raises:
            OSError: a part cannot be written; the error names the pack.
        """
        self._close()
        parts = []
        for number, (_, images) in enumerate(self._sizes):
            temporary = self._temporary(number)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            parts.append(Part(bytes=temporary.stat().st_size, images=images))
            self._named = number + 1
            os.replace(temporary, part_path(self._pack, number))
        return tuple(parts)

    def remove(self) -> None:
        """Removes all parts, those that `finish` has named too."""
        with suppress(OSError):  # closing writes what the disk had no room for; the first error is the one to tell
            self._close()
        for number in range(len(self._sizes)):
            self._temporary(number).unlink(missing_ok=True)
        for number in range(self._named):
            part_path(self._pack, number).unlink(missing_ok=True)

    def _close(self) -> None:
        archive, self._archive = self._archive, None
        if archive is not None:
            with self._name_errors():
                archive.close()

    @contextmanager
    def _name_errors(self) -> Iterator[None]:
        """Lets an error of writing name the pack: that of a full disk names no file."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self._pack)
            raise

    def _temporary(self, number: int) -> Path:
        path = part_path(self._pack, number)
        return path.with_name(f".{path.name}-{self._mark}")
