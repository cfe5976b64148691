"""The folder of a training run: what is resumed from, what is served, and what is looked at."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from tensorboardX import SummaryWriter

from model.checkpoints.checkpoint import Checkpoint, save

RECIPE, STATE, WEIGHTS, METRICS, PREVIEWS = "recipe.json", "state.pt", "model.safetensors", "metrics.csv", "previews"


class RunError(ValueError):
    """A run that cannot be started or gone on with; one sentence."""


class Run:
    """Files of one run; each is replaced whole or not at all, but for metrics.csv, which grows."""

    def __init__(self, folder: Path, measures: Sequence[str] = ()) -> None:
        """The folder is made by `begin`; metrics.csv has columns for `measures` too, which are logged now and then."""
        self.folder = folder
        self._measures = measures
        self._columns: Sequence[str] = ()
        self._board: SummaryWriter | None = None
        self._rows: Any = None

    def begin(self, recipe: BaseModel, data: Mapping[str, Any]) -> None:
        """Makes the folder and writes down what is about to be done.

        Args:
            recipe: the choices.
            data: facts of the images, which a resumed run must meet again.

        Raises:
            RunError: the folder holds a run.
        """
        if (self.folder / RECIPE).exists():
            raise RunError(f"{self.folder} holds a run already: --resume goes on with it")
        self.folder.mkdir(parents=True, exist_ok=True)
        said = {"recipe": recipe.model_dump(), "data": dict(data)}
        replace(self.folder / RECIPE, json.dumps(said, indent=1).encode())

    def recipe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The recipe and the data's facts that the run was begun with.

        Raises:
            RunError: there is no run.
        """
        path = self.folder / RECIPE
        if not path.is_file():
            raise RunError(f"{self.folder} holds no run to resume: it has no {RECIPE}")
        said = json.loads(path.read_bytes())
        return said["recipe"], said["data"]

    def save(self, state: Mapping[str, Any], checkpoint: Checkpoint) -> None:
        """Keeps what the run can be resumed from, and the weights as they are served.

        Raises:
            OSError: they cannot be written; those of before are whole.
        """
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        replace(self.folder / STATE, buffer.getbuffer())
        save(self.folder / WEIGHTS, checkpoint)

    def state(self) -> dict[str, Any] | None:
        """What was saved last, None if the run was ended before that."""
        path = self.folder / STATE
        if not path.is_file():
            return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state

    def open_metrics(self, columns: Sequence[str], step: int) -> None:
        """Begins metrics.csv and the TensorBoard events, or goes on with them: rows after `step` are dropped."""
        path = self.folder / METRICS
        kept = []
        if path.is_file():
            with path.open(newline="") as file:
                kept = [row for row in csv.DictReader(file) if int(row["step"]) <= step]
        text = io.StringIO(newline="")
        self._columns = (*columns, *self._measures)
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(kept)
        replace(path, text.getvalue().encode())
        self._rows = path.open("a", newline="")
        self._board = SummaryWriter(str(self.folder), purge_step=step + 1)

    def log(self, row: Mapping[str, float]) -> None:
        """One row of metrics.csv, empty where `row` says nothing, and its scalars for TensorBoard."""
        csv.DictWriter(self._rows, self._columns).writerow(row)
        self._rows.flush()
        if self._board is not None:
            for name, value in row.items():
                if name != "step":
                    self._board.add_scalar(name, value, int(row["step"]))

    def preview(self, step: int, png: bytes) -> None:
        """Keeps a sheet of reconstructions."""
        folder = self.folder / PREVIEWS
        folder.mkdir(exist_ok=True)
        replace(folder / f"step-{step:07d}.png", png)

    def close(self) -> None:
        """Closes what is open."""
        if self._rows is not None:
            self._rows.close()
        if self._board is not None:
            self._board.close()


def replace(path: Path, data: bytes | memoryview) -> None:
    """Writes a whole file at once or not at all, through to the disk.

    Raises:
        OSError: it cannot be written; nothing has changed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
