"""Options and errors of the commands that train: `mae pretrain` and `mae finetune`."""

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


def recipe_of(kind: type[S], options: Mapping[str, Any]) -> S:
    """The recipe of class `kind` that the options describe.

    Raises:
        CommandError: an option has an invalid value; the message names it.
    """
    try:
        return kind(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = f"--{str(first['loc'][0]).replace('_', '-')}: " if first["loc"] else ""
        raise CommandError(name + first["msg"].removeprefix("Value error, ")) from error


def require_bound(config: TrainingConfig) -> None:
    """Checks that the run has an end.

    Raises:
        CommandError: neither epochs nor steps nor minutes are given.
    """
    if not config.has_bound:
        raise CommandError("the length of the training is not given: add --epochs, --steps or --minutes")


def absolute_weights(weights: str) -> str:
    """The name of weights or of a preset; a path becomes absolute, as the run may be resumed from another folder."""
    if weights in PRESETS:
        return weights
    return weights if weights.startswith(HUB_PREFIX) else str(Path(weights).expanduser().absolute())


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turns the errors of a run into a sentence and an exit code.

    Raises:
        CommandError: the run cannot start or continue.
        typer.Exit: a signal ended the run, after its state was saved.
    """
    from model.images.folders import ClassFolderError
    from model.training.dataset import NoImages
    from model.training.run import RunError
    from model.training.signals import Interrupted

    try:
        yield
    except (RunError, NoImages, ClassFolderError) as error:
        raise CommandError(str(error)) from error
    except Interrupted as error:
        print(f"mae: {error}")
        raise typer.Exit(128 + error.number) from None
