"""Packs: the images of a folder in a few files of a bounded size.

`photos.pack` is a small JSON file that lists the parts `photos.pack.000`, `photos.pack.001`, … beside it. Each part is
a ZIP archive without compression, whose members are images under their paths in the folder that was packed. So any
unzip can read a part by itself, and a CRC-32 guards each image.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Literal, Self
from zipfile import BadZipFile, ZipFile

from pydantic import BaseModel, ConfigDict, ValidationError

from model.images.errors import ImageError
from model.images.formats.base import StoredImage
from model.images.open_image import MAX_PIXELS, open_image
from model.images.regular_file import read_regular_file

PACK_SUFFIX = ".pack"


class PackError(ValueError):
    """A pack that cannot be read or written; the message is one sentence that names the file."""


class Part(BaseModel):
    """What the list says of a part."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    """Size of its file."""
    images: int
    """Number of its images."""


class PackList(BaseModel):
    """The content of the JSON file of a pack."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["mae-serve pack 1"] = "mae-serve pack 1"
    side: int
    """The short side in pixels that larger images were scaled down to."""
    quality: int
    """JPEG quality of the images that were encoded anew."""
    parts: tuple[Part, ...]


class PackedImage(str):
    """The path of an image in a pack, PACK/NAME, which can be read although no file has it.

    It is a string, so that lists of images may hold paths of both kinds.
    """

    archive: ZipFile
    member: str

    def __new__(cls, pack: Path, archive: ZipFile, member: str) -> Self:
        """The image `member` of `archive`, a part of `pack`."""
        path = super().__new__(cls, f"{pack}/{member}")
        path.archive, path.member = archive, member
        return path

    def read_bytes(self) -> bytes:
        """The image's file; several threads may read from one pack.

        Raises:
            OSError: the part cannot be read, or these bytes of it are damaged.
        """
        try:
            return self.archive.read(self.member)
        except (BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise OSError(errno.EIO, f"damaged in {self.archive.filename}: {error}", str(self)) from error


def is_pack(path: Path) -> bool:
    """Whether `path` is a file that is named like a pack."""
    return path.suffix == PACK_SUFFIX and path.is_file()


def part_path(pack: Path, number: int) -> Path:
    """The path of a part."""
    return pack.with_name(f"{pack.name}.{number:03d}")


def find_packed_images(pack: Path) -> list[PackedImage]:
    """The images of a pack, in the order in which they were packed.

    Raises:
        PackError: the list or a part is missing, truncated or no such file.
    """
    try:
        content = PackList.model_validate_json(pack.read_bytes())
    except ValidationError as error:
        raise PackError(f"{pack} is no list of a pack that `mae pack` has written") from error
    images: list[PackedImage] = []
    for number, part in enumerate(content.parts):
        path = part_path(pack, number)
        if not path.is_file():
            raise PackError(f"{path} is missing: {pack} has {len(content.parts)} parts")
        if (size := path.stat().st_size) != part.bytes:
            raise PackError(f"{path} has {size} bytes, but {pack} says {part.bytes}: it is truncated or another file")
        try:
            archive = ZipFile(path)
        except BadZipFile as error:
            raise PackError(f"{path} is damaged: {error}") from error
        members = archive.namelist()
        if len(members) != part.images:
            raise PackError(f"{path} holds {len(members)} images, but {pack} says {part.images}")
        images += (PackedImage(pack, archive, member) for member in members)
    return images


def read_image_file(path: str) -> bytes:
    """The bytes of an image file, on the disk or in a pack.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    return path.read_bytes() if isinstance(path, PackedImage) else read_regular_file(path)


def open_image_file(path: str, max_pixels: int = MAX_PIXELS) -> StoredImage:
    """Opens an image on the disk or in a pack, as `open_image` does.

    Raises:
        ImageError: as `open_image`.
    """
    if not isinstance(path, PackedImage):
        return open_image(path, max_pixels)
    try:
        return open_image(path.read_bytes(), max_pixels)
    except OSError as error:
        raise ImageError(error.strerror or os.strerror(error.errno or 0)) from error
