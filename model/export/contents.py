"""What exporters share: the description of the files that they wrote, their error, and the file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from model.checkpoints.heads import Heads

WEIGHTS = "model.safetensors"


class ExportError(ValueError):
    """A format cannot hold the model, or a package is missing; the message is a whole sentence."""


@dataclass(frozen=True)
class Contents:
    """The files of an exported folder, for its model card.

    Attributes:
        title: what the folder holds, in a sentence without its full stop.
        usage: Python code that runs the model on `photograph.jpg`, from inside the folder.
        library: the hub's name of the library that opens the folder.
        task: the hub's name of what the model does.
        weights: the file that `heads` belong to.
        heads: heads that the format has no place for.
        notes: sentences about what is left out, and about what the other program computes differently.
    """

    title: str
    usage: str
    library: str
    task: str = "image-feature-extraction"
    weights: str = WEIGHTS
    heads: Heads = field(default_factory=Heads)
    notes: tuple[str, ...] = ()


def write_weights(folder: Path, tensors: Mapping[str, Tensor], half: bool) -> None:
    """Writes model.safetensors, in float16 if `half`, else in float32."""
    dtype = torch.float16 if half else torch.float32
    stored = {name: x.to(dtype).contiguous() for name, x in tensors.items()}
    # Not safetensors' save_file, which leaves the file unreadable to everyone else.
    (folder / WEIGHTS).write_bytes(save(stored, {"format": "pt"}))
