"""Records of images and vectors, the vector space that a file belongs to, and the interface of all file formats."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.arrays import Floats
from model.config import Preprocessing
from model.engines.base import ComputedPrecision, EngineInfo, Precision
from service.cli.errors import VectorFileError
from service.inference.embedding import EmbeddingPlan
from service.inference.vector_space import space_of
from service.parameters import Pool

Count = Annotated[int, Field(gt=0)]


class VectorRecord(NamedTuple):
    """The path of an image, and its vector or the reason why it has none."""

    path: str
    """As the user gave it."""
    vector: Floats | None
    """Float32 [D], or [K, D] for tokens; None if the image failed, which only folders of shards hold."""
    file: str
    """The absolute path without links, or the URL, by which the image is recognised from every folder."""
    error: str | None = None
    """Why the image has no vector; None if it has one."""
    size: int | None = None
    """Bytes of the image's file; None if the source does not say, or in a file that has no sizes."""
    modified: int | None = None
    """When the image's file was changed, in microseconds since 1970 (UTC); None as for `size`."""


class VectorSpace(BaseModel):
    """The properties that vectors must share to be comparable; every format stores them with the vectors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    space: str | None = None
    """All that follows but the seed in one word, as POST /embed answers it; None in a file of an earlier version."""
    model: str
    """The name of the model and the hash of its weights."""
    precision: Precision
    """The precision that was asked for, or that PRECISION=auto chose."""
    computes: ComputedPrecision | None = None
    """The precision that the engine computed in; None in a file of an earlier version, which does not say."""
    heads: int | None = None
    """The encoder's attention heads, which HEADS may change; None in a file of an earlier version, or without any."""
    image_size: int
    preprocessing: Preprocessing
    pool: Pool
    whiten: bool = False
    dimensions: int | None = None
    """The number of principal axes that were kept; None for all."""
    normalize: bool
    keep: float
    seed: int | None = None
    """The seed of the visible patches if `keep` is below 1."""
    patches: str | None = None
    """The row-major indices of the visible patches if they are a region."""
    dim: Count
    grid: tuple[Count, Count]
    """Number of patches per column and per row of an image."""
    positions: tuple[int, ...] | None = None
    """For some of the tokens: the row-major index of the patch of each token."""

    @classmethod
    def of(cls, info: EngineInfo, plan: EmbeddingPlan) -> Self:
        """The space of the vectors that an engine computes by a plan."""
        parameters = plan.parameters
        has_some_tokens = plan.pool == "tokens" and len(plan.visible_indices) < info.config.num_patches
        return cls(
            space=space_of(info, parameters),
            model=info.model_id,
            precision=info.precision,
            computes=info.computes,
            heads=info.config.num_heads or None,
            image_size=info.config.image_size,
            preprocessing=info.preprocessing,
            pool=parameters.pool,
            whiten=parameters.whitens,
            dimensions=parameters.dimensions,
            normalize=parameters.normalize,
            keep=plan.keep(info.config),
            seed=plan.seed,
            patches=parameters.patches,
            dim=plan.dim(info.config),
            grid=(info.config.grid, info.config.grid),
            positions=tuple(plan.visible_indices.tolist()) if has_some_tokens else None,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image's vector: (D,), or (K, D) for tokens."""
        if self.pool != "tokens":
            return (self.dim,)
        return (self.grid[0] * self.grid[1] if self.positions is None else len(self.positions), self.dim)

    def require(self, other: VectorSpace, where: Path) -> None:
        """Checks that vectors of the space `other` may be added to the file `where`, whose space this is.

        Raises:
            VectorFileError: the spaces differ, and the message names the first difference; or an earlier version wrote
                the file.
        """
        if self.space is None:
            raise VectorFileError(
                f"{where} was made by an earlier version, which did not convert colour profiles: choose another "
                "output, or replace it with --overwrite"
            )
        for name in sorted(type(self).model_fields, key=lambda name: name == "space"):  # the word names no difference
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise VectorFileError(
                    f"{where} was made with {name}={mine}, and this run would make {name}={theirs}: "
                    "choose another output, or replace it with --overwrite"
                )


class StoredVectors(NamedTuple):
    """The content of a finished file."""

    space: VectorSpace
    paths: list[str]
    files: list[str]
    """The file of each path; see `VectorRecord`."""
    records: Iterator[VectorRecord]
    """The records in the order of `paths`; each is read from the file when it is needed."""


class Format(Protocol):
    """A file format. Neither reading nor writing holds all vectors in memory at once."""

    def read(self, path: Path) -> StoredVectors:
        """Opens a file that `write` has written.

        Raises:
            VectorFileError: the file is damaged, or another program wrote it.
        """

    def write(self, path: Path, space: VectorSpace, files: Mapping[str, str], records: Iterable[VectorRecord]) -> None:
        """Writes a whole file; `files` has the path of each file, and `records` come in its order."""


def parse_space(path: Path, properties: object) -> VectorSpace:
    """The vector space with the `properties` that were read from the file at `path`.

    Raises:
        VectorFileError: they do not describe a vector space.
    """
    try:
        return VectorSpace.model_validate(properties)
    except ValidationError as error:
        raise foreign_file_error(path) from error


@contextmanager
def blame_file(path: Path) -> Iterator[None]:
    """Raises a VectorFileError in place of any exception of those who read the file at `path`: they raise all kinds.

    Raises:
        VectorFileError: instead of the exception.
        OSError: the system refuses to read the file.
    """
    try:
        yield
    except (VectorFileError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a wrong offset is the file's
            raise
        raise foreign_file_error(path) from error


def foreign_file_error(path: Path) -> VectorFileError:
    """The error for a file that `mae embed` did not write."""
    return VectorFileError(f"{path} is damaged or was not written by mae embed: choose another output, or --overwrite")
