"""Our own file format: safetensors with the config and the preprocessing in their metadata. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator
from safetensors import safe_open

from model.checkpoints.errors import wrap_read_errors
from model.config import MAEConfig, Preprocessing

METADATA_KEY = "mae-serve"
Pooled = Literal["cls", "mean"]
"""The vector that stands for an image: the cls token, or the mean of the patch tokens."""


class HeadConfig(BaseModel):
    """The pooled vector that a classification head takes, and the classes that it tells apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: Pooled
    classes: tuple[str, ...]

    @field_validator("classes")
    @classmethod
    def _has_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if not classes:
            raise ValueError("a head of 0 classes: expected at least one")
        return classes


class Metadata(BaseModel):
    """The description that our own safetensors files carry, as JSON under `METADATA_KEY`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    config: MAEConfig
    preprocessing: Preprocessing
    license: str | None = None
    head: HeadConfig | None = None


def read_metadata(path: Path) -> Metadata | None:
    """Reads the metadata of one of our own safetensors files; None for any other file.

    Raises:
        WeightsError: the file is missing or damaged, or its metadata describes no model.
    """
    with wrap_read_errors(path):
        if not is_safetensors(path):
            return None
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
        return None if text is None else Metadata.model_validate_json(text)


def is_safetensors(path: Path) -> bool:
    """Tells whether a file begins as safetensors do: eight bytes of length, then a JSON object."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"
