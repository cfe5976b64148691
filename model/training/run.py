"""The folder of a training run: its recipe, the state it is resumed from, its weights, metrics and previews."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from tensorboardX import SummaryWriter

from model.atomic_write import atomic_write
from model.checkpoints.checkpoint import Checkpoint, save
from model.training.config import TrainingConfig

C = TypeVar("C", bound=TrainingConfig)

RECIPE, STATE, WEIGHTS, METRICS, PREVIEWS = "recipe.json", "state.pt", "model.safetensors", "metrics.csv", "previews"
EVENTS = "events.out.tfevents.*"
CHANGEABLE = frozenset(
    (
        "threads",
        "workers",
        "log_steps",
        "save_minutes",
        "preview_minutes",
        "preview_images",
        "validation_minutes",
        "compile",
        "memory_mb",
    )
)
"""Options that may differ when a run is resumed: they change neither data order nor schedule nor arithmetic."""


class RunError(ValueError):
    """A run that cannot be started or resumed; the message is one sentence."""


def first_sentence(error: ValueError) -> str:
    """The sentence of an error; of one by pydantic, that of its first part."""
    return error.errors()[0]["msg"].removeprefix("Value error, ") if isinstance(error, ValidationError) else str(error)


class Run:
    """The files of one run. Each is replaced whole or not at all, but for metrics.csv, which grows."""

    def __init__(self, folder: Path, measures: Sequence[str] = ()) -> None:
        """Names the folder, which `begin` makes; metrics.csv gets columns for `measures` after those of the steps."""
        self.folder = folder
        self._measures = measures
        self._columns: Sequence[str] = ()
        self._begun = False
        self._made: list[Path] = []
        self._others: set[Path] = set()
        self._board: SummaryWriter | None = None
        self._metrics: Any = None

    def begin(self, recipe: TrainingConfig, data: Mapping[str, Any]) -> None:
        """Makes the folder, and records the options and the images of the run.

        Args:
            recipe: the options.
            data: a record of the images, which a resumed run must find again.

        Raises:
            RunError: the folder holds a run.
        """
        if (self.folder / RECIPE).exists():
            raise RunError(f"{self.folder} holds a run already: --resume goes on with it")
        self._begun = True
        self._made = [path for path in (self.folder, *self.folder.absolute().parents) if not path.exists()]
        self._others = set(self.folder.iterdir()) if self.folder.is_dir() else set()
        self.folder.mkdir(parents=True, exist_ok=True)
        record = {"recipe": recipe.model_dump(), "data": dict(data)}
        atomic_write(self.folder / RECIPE, json.dumps(record, indent=1).encode(), durable=True)

    @contextmanager
    def discard_if_never_saved(self) -> Iterator[None]:
        """Removes a run that `begin` began and that an error ends before anything was saved, with its folder.

        So the same command can be given again once the mistake is corrected.
        """
        try:
            yield
        except Exception:
            if self._begun and not self.is_saved:
                self._discard()
            raise

    def _discard(self) -> None:
        """Removes the files of the run, and the folders that `begin` made; what others put there stays."""
        self.close()
        for pattern in (RECIPE, METRICS, WEIGHTS, EVENTS, f"{PREVIEWS}/*", PREVIEWS):
            for path in self.folder.glob(pattern):
                if path not in self._others and path.parent not in self._others:
                    path.rmdir() if path.is_dir() else path.unlink()
        for folder in self._made:
            if not any(folder.iterdir()):
                folder.rmdir()

    def save(self, state: Mapping[str, Any], checkpoint: Checkpoint) -> None:
        """Saves the state that the run can be resumed from, and the weights as they are served.

        Raises:
            OSError: they cannot be written; the files saved before are whole.
        """
        self.save_state(state)
        save(self.folder / WEIGHTS, checkpoint)

    @property
    def is_saved(self) -> bool:
        """Whether there is a state to resume from."""
        return (self.folder / STATE).is_file()

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Saves the state alone, for a run that has no weights yet.

        Raises:
            OSError: as `save`.
        """
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        atomic_write(self.folder / STATE, buffer.getbuffer(), durable=True)

    def load_state(self) -> dict[str, Any] | None:
        """The state that was saved last; None if the run was ended before that."""
        if not self.is_saved:
            return None
        state: dict[str, Any] = torch.load(self.folder / STATE, map_location="cpu", weights_only=True)
        return state

    def open_metrics(self, columns: Sequence[str], step: int) -> None:
        """Opens metrics.csv and the TensorBoard events, and drops the lines after `step` of an earlier process."""
        path = self.folder / METRICS
        kept = []
        if step and path.is_file():
            with path.open(newline="") as file:
                kept = [line for line in csv.DictReader(file) if int(line["step"]) <= step]
        text = io.StringIO(newline="")
        self._columns = (*columns, *self._measures)
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(kept)
        atomic_write(path, text.getvalue().encode(), durable=True)
        self._metrics = path.open("a", newline="")
        self._board = SummaryWriter(str(self.folder), purge_step=step + 1)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Appends one line to metrics.csv, with blanks for columns not in `metrics`, and scalars for TensorBoard."""
        csv.DictWriter(self._metrics, self._columns).writerow(metrics)
        self._metrics.flush()
        if self._board is not None:
            for name, value in metrics.items():
                if name != "step":
                    self._board.add_scalar(name, value, int(metrics["step"]))

    def save_preview(self, step: int, png: bytes) -> None:
        """Saves a sheet of reconstructions."""
        folder = self.folder / PREVIEWS
        folder.mkdir(exist_ok=True)
        atomic_write(folder / f"step-{step:07d}.png", png)

    def close(self) -> None:
        """Closes the files that `open_metrics` has opened."""
        if self._metrics is not None:
            self._metrics.close()
        if self._board is not None:
            self._board.close()


def restore_recipe(
    folder: Path, recipe: C, explicit: set[str], unrecorded: Mapping[str, Any] = MappingProxyType({})
) -> tuple[C, dict[str, Any]]:
    """Reads the recipe of the run in `folder`, for resuming it.

    Args:
        folder: the run's folder.
        recipe: the options of the command that resumes it.
        explicit: names of the options in `recipe` that the user gave. They replace those of the run if `CHANGEABLE`.
        unrecorded: options as they were before versions that record them.

    Returns:
        The recipe, and the record of the images that the run was begun with.

    Raises:
        RunError: there is no run, it is of another kind, or an option would change it.
    """
    path = folder / RECIPE
    if not path.is_file():
        raise RunError(f"{folder} holds no run to resume: it has no {RECIPE}")
    record = json.loads(path.read_bytes())
    try:
        original = type(recipe)(**{**unrecorded, **record["recipe"]})
    except ValidationError as error:
        raise RunError(f"{folder} holds a run of another command") from error
    for name in sorted(explicit - CHANGEABLE):
        if getattr(recipe, name) != getattr(original, name):
            raise RunError(
                f"{folder} was begun with {name} {getattr(original, name)}: it cannot go on with another one"
            )
    changes = {name: getattr(recipe, name) for name in explicit & CHANGEABLE}
    return original.model_copy(update=changes), record["data"]


def record_images(images: Sequence[str], folders: Sequence[Path]) -> dict[str, Any]:
    """A record of the images of a run: a resumed run must find the same files in the same order."""
    names = hashlib.sha256("\0".join(images).encode()).hexdigest()
    return {"folders": [str(path.absolute()) for path in folders], "images": len(images), "names": names}


def require_same_images(folder: Path, recorded: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises RunError unless `current` names the same images as `recorded`, the record of the run in `folder`."""
    if current["names"] != recorded["names"]:
        raise RunError(f"{folder} was begun with {recorded['images']} images; those found now are not the same")
