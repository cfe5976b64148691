"""An exported folder: the files of its format, its model card, and heads that the format has no place for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from model.checkpoints.checkpoint import Checkpoint, describe
from model.checkpoints.errors import summarise
from model.checkpoints.heads import Heads
from model.checkpoints.heads_file import write_heads
from model.checkpoints.tensors import names_not_finite
from model.config import Preprocessing
from model.export.contents import Contents, ExportError
from model.export.huggingface import export_to_huggingface
from model.export.onnx import export_to_onnx
from model.export.timm import export_to_timm

EXPORTERS: Mapping[str, Callable[[Checkpoint, Path, bool], Contents]] = {
    "huggingface": export_to_huggingface,
    "timm": export_to_timm,
    "onnx": export_to_onnx,
}
HUB_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0")
"""Licences that the hub has a name for; others are `other` there, with a name of their own."""


def export(checkpoint: Checkpoint, target: str, output: Path, half: bool = False) -> Contents:
    """Writes a whole folder in another program's format, or nothing.

    Args:
        checkpoint: the model.
        target: a key of `EXPORTERS`.
        output: the folder to make, or an empty one; the folder around it exists.
        half: store 16 bits per number, where the format can.

    Raises:
        ExportError: the format or 16 bits cannot hold the model, or `output` is no empty folder.
        OSError: a file cannot be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(f"{output} exists already: name a new folder or an empty one")
    if half and (too_large := names_not_finite({name: x.half() for name, x in checkpoint.tensors.items()})):
        raise ExportError(f"{summarise(too_large)} has numbers that are too large for 16 bits: leave --half out")
    temporary = output.with_name(f".{output.name}-{uuid4().hex}")
    temporary.mkdir()
    try:
        contents = EXPORTERS[target](checkpoint, temporary, half)
        if contents.heads != Heads():
            write_heads(temporary, contents.heads, describe(checkpoint), contents.weights)
        (temporary / "README.md").write_text(_model_card(checkpoint, contents), encoding="utf-8")
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return contents


def _model_card(checkpoint: Checkpoint, contents: Contents) -> str:
    c = checkpoint.config
    sections = [
        _front_matter(checkpoint.license, contents),
        f"# {c.name}",
        f"A masked autoencoder (He et al. 2021) for images of {c.image_size} x {c.image_size} pixels in patches of "
        f"{c.patch_size} x {c.patch_size}, as {contents.title}. mae-serve {version('mae-serve')} wrote this folder.",
        "## Use",
        f"```python\n{contents.usage.rstrip()}\n```",
        "## Images",
        _describe_preprocessing(checkpoint.preprocessing, c.image_size),
    ]
    if contents.notes:
        sections += ["## Contents", "\n".join(f"- {note}" for note in contents.notes)]
    if contents.heads != Heads():
        sections += ["## heads.safetensors", *_describe_heads(contents.heads)]
    sections += ["## Licence", f"The weights are under: {checkpoint.license or 'a licence that they do not name'}."]
    return "\n\n".join(sections) + "\n"


def _front_matter(licence: str | None, contents: Contents) -> str:
    lines = [f"library_name: {contents.library}", f"pipeline_tag: {contents.task}", "tags: [masked-autoencoder, mae]"]
    if licence is not None:
        name = licence.lower().replace(" ", "-")
        known = name in HUB_LICENCES
        lines += [f"license: {name if known else 'other'}"]
        lines += [] if known else [f'license_name: "{" ".join(licence.replace(chr(34), chr(39)).split())}"']
    return "\n".join(["---", *lines, "---"])


def _describe_preprocessing(preprocessing: Preprocessing, side: int) -> str:
    p = preprocessing
    size = f"to {side} x {side} pixels, whatever their shape"
    if p.resize == "short":
        short = p.resized_short_side(side)
        size = f"so that the short side has {short} pixels, and the centre of {side} x {side} is taken"
    return (
        f"Images are RGB and upright. They are scaled ({p.filter}, with antialiasing) {size}. Pixels in 0..1 are "
        f"standardised with the mean {list(p.mean)} and the deviation {list(p.std)}."
    )


def _describe_heads(heads: Heads) -> list[str]:
    lines = []
    if heads.head is not None:
        lines.append(
            f"- head.weight [C, D] and head.bias [C]: a linear classifier of {heads.head.config.pool}; the classes are "
            f"{json.dumps(heads.head.config.classes[:20], ensure_ascii=False)}"
            + (f" and {len(heads.head.config.classes) - 20} more." if len(heads.head.config.classes) > 20 else ".")
        )
    for pool in heads.whitening:
        lines.append(f"- whitening.{pool}.centre [D] and .matrix [D, D']: `({pool} - centre) @ matrix` is whitened.")
    if heads.memory_bank is not None:
        lines.append("- memory_bank.tokens [M, D] and .scores [n]: patch tokens of normal images, and their scores.")
    return [
        "The format has no place for these arrays, float32, which mae-serve reads again from here:",
        "\n".join(lines),
    ]
