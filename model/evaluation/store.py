"""Storing heads in a file of weights. The module imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open

from model.checkpoints.checkpoint import load, save
from model.checkpoints.heads import Heads, is_head_tensor
from model.checkpoints.locate import Source
from model.checkpoints.native import is_safetensors


def store_heads(
    source: Source,
    output: Path,
    change: Callable[[Heads], Heads],
    model: str | None = None,
    norm_pix_loss: bool | None = None,
    heads: Sequence[int] | None = None,
) -> None:
    """Writes weights in our own format with other heads beside them.

    Args:
        source: weights of any layout.
        output: the file to make or replace, which may be that of the source.
        change: makes the heads to write from those in the file.
        model: as for `model.checkpoints.checkpoint.load`.
        norm_pix_loss: as for `model.checkpoints.checkpoint.load`.
        heads: as for `model.checkpoints.checkpoint.load`.

    Raises:
        WeightsError: the weights cannot be read.
    """
    checkpoint = load(source.path, model, norm_pix_loss, heads)
    checkpoint = replace(checkpoint, heads=change(checkpoint.heads), license=checkpoint.license or source.license)
    save(output, checkpoint, half=_is_half(source.path))


def _is_half(path: Path) -> bool:
    """Tells whether all tensors of the model in a file are float16."""
    if path.is_dir() or not is_safetensors(path):
        return False
    with safe_open(path, framework="numpy") as file:
        return all(file.get_slice(name).get_dtype() == "F16" for name in file.keys() if not is_head_tensor(name))  # noqa: SIM118
