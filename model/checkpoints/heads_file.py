"""Heads in files: in our own format, and in `heads.safetensors` beside weights of another format.

That file holds the heads that a folder's format has no place for, under the names of our own format. Its metadata
hold the description of the model, and the digest of the weights: heads mean nothing for weights that were trained
further. The module imports no torch, so that serving needs none.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from safetensors import safe_open
from safetensors.numpy import save

from model.checkpoints.errors import wrap_read_errors
from model.checkpoints.heads import Heads, is_head_tensor
from model.checkpoints.native import Metadata, read_metadata

FILE = "heads.safetensors"
METADATA_KEY = "mae-serve-heads"
WEIGHTS = "model.safetensors"


class HeadsMetadata(BaseModel):
    """The description in the file's metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Metadata
    weights: str
    """SHA-256 in hex of the weights beside the file."""


def read_heads(path: Path) -> Heads:
    """Reads the heads of one of our own files, or of a folder with a `heads.safetensors`; others have none.

    Raises:
        WeightsError: the file cannot be read, or as `Heads.from_arrays`.
    """
    if path.is_dir():
        return read_folder_heads(path)[0]
    metadata = read_metadata(path)
    if metadata is None:
        return Heads()
    with wrap_read_errors(path), safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys() if is_head_tensor(name)}  # noqa: SIM118
    return Heads.from_arrays(path, arrays, metadata)


def write_heads(folder: Path, heads: Heads, model: Metadata, weights: str = WEIGHTS) -> None:
    """Writes the file into a folder.

    Args:
        folder: holds the file `weights`.
        heads: at least one.
        model: the description of the model.
        weights: the name of the file of weights.
    """
    model = model.model_copy(update={"head": heads.head and heads.head.config})
    metadata = HeadsMetadata(model=model, weights=_digest(folder / weights))
    (folder / FILE).write_bytes(save(heads.arrays(), {METADATA_KEY: metadata.model_dump_json()}))


def read_folder_heads(folder: Path) -> tuple[Heads, Metadata | None, tuple[str, ...]]:
    """Reads the file of a folder: its heads, the description of the model, and notes.

    Without a file there are no heads and no description. There are none, either, if the weights have changed since,
    which a note tells.

    Raises:
        WeightsError: the file is damaged, or its arrays do not belong to its metadata.
    """
    path = folder / FILE
    if not path.is_file():
        return Heads(), None, ()
    with wrap_read_errors(path), safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
        if text is None:
            return Heads(), None, ()
        metadata = HeadsMetadata.model_validate_json(text)
        arrays = {name: file.get_tensor(name) for name in file.keys() if is_head_tensor(name)}  # noqa: SIM118
    weights = folder / WEIGHTS
    if not weights.is_file() or _digest(weights) != metadata.weights:
        return Heads(), None, (f"left out: {FILE}, which was made for other weights than {WEIGHTS}",)
    return Heads.from_arrays(path, arrays, metadata.model), metadata.model, ()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
