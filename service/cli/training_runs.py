"""What the commands that train have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import typer
from pydantic import ValidationError

from model.checkpoints.locate import HUB_PREFIX
from model.config import PRESETS
from model.training.config import TrainingConfig
from service.cli.errors import CommandError

S = TypeVar("S", bound=TrainingConfig)


def recipe_of(kind: type[S], chosen: Mapping[str, Any]) -> S:
    """The recipe that the options describe.

    Raises:
        CommandError: a choice that cannot be.
    """
    try:
        return kind(**chosen)
    except ValidationError as error:
        first = error.errors()[0]
        name = f"--{str(first['loc'][0]).replace('_', '-')}: " if first["loc"] else ""
        raise CommandError(name + first["msg"].removeprefix("Value error, ")) from error


def require_bound(schedule: TrainingConfig) -> None:
    """Raises CommandError unless something says how long to train."""
    if (schedule.epochs, schedule.steps, schedule.minutes) == (None, None, None):
        raise CommandError("nothing says how long to train: give --epochs, --steps or --minutes")


def absolute_weights(weights: str) -> str:
    """A name of weights, or of a preset, that means the same wherever a run is resumed from."""
    if weights in PRESETS:
        return weights
    return weights if weights.startswith(HUB_PREFIX) else str(Path(weights).expanduser().absolute())


@contextmanager
def ending_well() -> Iterator[None]:
    """Makes what stops a run one sentence and an exit code.

    Raises:
        CommandError: the run cannot be begun or gone on with.
        typer.Exit: a signal ended it, after its state was saved.
    """
    from model.images.folders import ClassFolderError
    from model.training.dataset import NoImages
    from model.training.run import RunError
    from model.training.trainer import Interrupted

    try:
        yield
    except (RunError, NoImages, ClassFolderError) as error:
        raise CommandError(str(error)) from error
    except Interrupted as error:
        print(f"mae: {error}")
        raise typer.Exit(128 + error.number) from None
