"""Files of vectors: what a row is, what tells a vector space, and what every format can do."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from model.arrays import Floats, Indices
from model.config import Preprocessing
from model.engines.base import ComputedPrecision, EngineInfo, Precision
from service.cli.errors import CommandError
from service.parameters import EmbedParameters, Pool


class VectorFileError(CommandError):
    """A file of vectors that cannot be read, or must not be added to; one sentence says why."""


class Row(NamedTuple):
    """An image and its vector."""

    path: str
    vector: Floats
    """Float32 [D], or [K, D] for tokens."""


class VectorSpace(BaseModel):
    """What vectors must have in common to be compared; every format keeps it beside them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """Name and hash of the weights."""
    precision: Precision
    """As it was asked for."""
    computes: ComputedPrecision | None = None
    """What it was really computed in; None in a file of an earlier version, which does not say."""
    image_size: int
    preprocessing: Preprocessing
    pool: Pool
    whiten: bool = False
    normalize: bool
    keep: float
    seed: int | None = None
    """For keep below 1."""
    dim: int
    grid: tuple[int, int]
    """Rows and columns of patches."""
    positions: tuple[int, ...] | None = None
    """Row-major places of the tokens, for keep below 1."""

    @classmethod
    def of(cls, info: EngineInfo, parameters: EmbedParameters, seed: int | None, positions: Indices, dim: int) -> Self:
        """The space that an engine makes with these parameters, of vectors `dim` long."""
        some_tokens = parameters.pool == "tokens" and seed is not None
        return cls(
            model=info.model_id,
            precision=info.precision,
            computes=info.computes,
            image_size=info.config.image_size,
            preprocessing=info.preprocessing,
            pool=parameters.pool,
            whiten=parameters.whiten,
            normalize=parameters.normalize,
            keep=parameters.keep,
            seed=seed,
            dim=dim,
            grid=(info.config.grid, info.config.grid),
            positions=tuple(positions.tolist()) if some_tokens else None,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's vector."""
        if self.pool != "tokens":
            return (self.dim,)
        return (self.grid[0] * self.grid[1] if self.positions is None else len(self.positions), self.dim)

    def require(self, other: VectorSpace, where: Path) -> None:
        """Raises unless `other`, of a run that wants to add to `where`, is the same space.

        Raises:
            VectorFileError: it is another; the message names the first difference.
        """
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            unknown = name == "computes" and mine is None
            if mine != theirs and not unknown:
                raise VectorFileError(
                    f"{where} was made with {name}={mine}, and this run would make {name}={theirs}: "
                    "choose another output, or replace it with --overwrite"
                )


class Stored(NamedTuple):
    """A finished file, open for reading."""

    space: VectorSpace
    paths: list[str]
    rows: Iterator[Row]
    """In the order of `paths`, read as they are asked for."""


class Format(Protocol):
    """One kind of file. Vectors are never all in memory at once, neither on reading nor on writing."""

    def read(self, path: Path) -> Stored:
        """Opens a file that `write` made.

        Raises:
            VectorFileError: somebody else did.
        """

    def write(self, path: Path, space: VectorSpace, paths: Collection[str], rows: Iterable[Row]) -> None:
        """Writes a whole file: `rows` in the order of `paths`."""


def read_space(path: Path, said: object) -> VectorSpace:
    """The vector space that a file says it holds.

    Raises:
        VectorFileError: that is none.
    """
    try:
        return VectorSpace.model_validate(said)
    except ValidationError as error:
        raise foreign(path) from error


def foreign(path: Path) -> VectorFileError:
    """For a file that `mae embed` did not write."""
    return VectorFileError(f"{path} is damaged or was not written by mae embed: choose another output, or --overwrite")
