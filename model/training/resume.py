"""What a resumed run must find again: its recipe and its images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from model.training.config import TrainingConfig
from model.training.run import Run, RunError

S = TypeVar("S", bound=TrainingConfig)
# What changes neither data order, schedule nor arithmetic may differ when a run is resumed.
FREE = frozenset(
    (
        "threads",
        "workers",
        "log_steps",
        "save_minutes",
        "preview_minutes",
        "preview_images",
        "validation_minutes",
        "compile",
    )
)


def facts_of(images: Sequence[str], folders: Sequence[Path]) -> dict[str, Any]:
    """What a resumed run must find again: the same files, in the same order."""
    names = hashlib.sha256("\0".join(images).encode()).hexdigest()
    return {"folders": [str(path.absolute()) for path in folders], "images": len(images), "names": names}


def said_recipe(folder: Path, recipe: S, given: set[str]) -> tuple[S, dict[str, Any]]:
    """The recipe of the run in `folder`, with what of `recipe` was `given` anew and may be; and the data's facts.

    Raises:
        RunError: there is no run, it is of another kind, or a choice would change it.
    """
    said, data = Run(folder).recipe()
    try:
        before = type(recipe)(**said)
    except ValidationError as error:
        raise RunError(f"{folder} holds a run of another command") from error
    changed = [name for name in sorted(given - FREE) if getattr(recipe, name) != getattr(before, name)]
    if changed:
        name = changed[0]
        raise RunError(f"{folder} was begun with {name} {getattr(before, name)}: it cannot go on with another one")
    return before.model_copy(update={name: getattr(recipe, name) for name in given & FREE}), data


def require_same_images(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises RunError unless the facts of images are those that the run in `folder` was begun with."""
    if now["names"] != before["names"]:
        raise RunError(f"{folder} was begun with {before['images']} images; those found now are not the same")
