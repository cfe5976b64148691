"""What an exporter tells about the files that it wrote, and the error for what a format cannot hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from model.checkpoints.heads import Heads


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
    weights: str = "model.safetensors"
    heads: Heads = field(default_factory=Heads)
    notes: tuple[str, ...] = ()
