"""Names of tensors as other programs write them -> the names of facebookresearch/mae.

Wrappers (DistributedDataParallel, torch.compile, Lightning modules) put a prefix before all names. lightly and
solo-learn keep encoder and decoder in two modules, and mmpretrain has names of its own. The names of Hugging Face's
ViTMAE are in `model.checkpoints.huggingface`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from model.checkpoints.errors import WeightsError, summarise
from model.checkpoints.foreign import kind_of_positions
from model.nn.vit import sincos_positions

ENCODER_MARKS = ("patch_embed.proj.weight", "patch_embed.projection.weight")
"""The name by which an encoder is found, in upstream's spelling and in mmpretrain's."""
DECODER_MARK = "decoder_embed.weight"
WRAPPER = re.compile(r"(?<=\.)(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")
DECODER_PARTS = ("decoder_", "mask_token")


class NamedTensors(NamedTuple):
    """A state dict under upstream's names."""

    tensors: dict[str, Tensor]
    mmpretrain: bool
    """Whether the names were mmpretrain's."""
    notes: list[str]
    """Sentences that tell which names were changed or left out."""


def to_upstream_names(path: Path, tensors: Mapping[str, Tensor]) -> NamedTensors:
    """Drops the prefixes of encoder and decoder, and spells the rest as facebookresearch/mae does.

    Beside an encoder that has a prefix, tensors under other prefixes belong to other modules (a loss, a projector, an
    online classifier): they are left out, and a note names them. A state dict without any encoder stays as it is.

    Raises:
        WeightsError: there are several encoders.
    """
    prefix = _encoder_prefix(path, tensors)
    if prefix is None:
        return NamedTensors(dict(tensors), False, [])
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    taken = {name for name in tensors if name.startswith(prefix)}
    dropped = [prefix] if prefix else []
    if DECODER_MARK not in found:
        before = next((name.removesuffix(DECODER_MARK) for name in sorted(tensors) if _ends(name, DECODER_MARK)), None)
        for name, tensor in tensors.items():
            inside = name.removeprefix(before) if before is not None and name.startswith(before) else ""
            if inside.startswith(DECODER_PARTS):
                found.pop(name, None)
                found[inside] = tensor
                taken.add(name)
        dropped += [before] if before else []
    notes = [f"dropped from the beginning of its names: {' and '.join(map(repr, dropped))}"] if dropped else []
    found, wrappers = _drop_wrappers(found)
    notes += [f"dropped from inside its names: {' and '.join(map(repr, wrappers))}"] if wrappers else []
    if left := tensors.keys() - taken:
        notes.append(f"left out, as parts of no masked autoencoder: {summarise(left)}")
    if ENCODER_MARKS[0] in found:
        return NamedTensors(found, False, notes)
    return NamedTensors({_from_mmpretrain(name): tensor for name, tensor in found.items()}, True, notes)


def complete_decoder(tensors: dict[str, Tensor]) -> list[str]:
    """Leaves out the remains of a decoder that is not there, and computes its fixed positions if they are missing.

    Args:
        tensors: a state dict under upstream's names, which is changed.

    Returns:
        Sentences that tell what was done.
    """
    if DECODER_MARK not in tensors:
        rest = [name for name in ("mask_token", "decoder_pos_embed") if name in tensors]
        for name in rest:
            del tensors[name]
        return [f"left out, as parts of a decoder that it does not hold: {summarise(rest)}"] if rest else []
    table = tensors.get("pos_embed")
    if "decoder_pos_embed" in tensors or table is None or table.ndim != 3:
        return []
    grid, width = math.isqrt(max(table.shape[1] - 1, 0)), tensors[DECODER_MARK].shape[0]
    if width % 4 or table.shape[1] != 1 + grid**2 or kind_of_positions({"pos_embed": table}) != "sincos":
        return []  # the decoder's positions were learned as well, so nobody can compute them
    tensors["decoder_pos_embed"] = sincos_positions(width, grid)
    return ["it holds no decoder_pos_embed: the fixed sine-cosine positions were computed"]


def _encoder_prefix(path: Path, tensors: Mapping[str, Tensor]) -> str | None:
    """The part of the names before those of the encoder; None if there is no encoder."""
    prefixes = sorted({name.removesuffix(mark) for mark in ENCODER_MARKS for name in tensors if _ends(name, mark)})
    if len(prefixes) > 1 and "" not in prefixes:
        names = " and ".join(map(repr, prefixes))
        raise WeightsError(f"{path} holds several encoders, whose names begin with {names}: save one of them alone")
    return min(prefixes, default=None)


def _drop_wrappers(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Drops what wrappers of single blocks (torch.compile, activation checkpointing, FSDP) put inside names."""
    found = {wrapper for name in tensors for wrapper in WRAPPER.findall(name)}
    return {WRAPPER.sub("", name): tensor for name, tensor in tensors.items()}, sorted(found)


def _ends(name: str, mark: str) -> bool:
    """Whether a name is `mark`, alone or as the last parts of a dotted name."""
    return name == mark or name.endswith(f".{mark}")


_MMPRETRAIN = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.", r"blocks.\1."),
    (r"^(?:ln1|norm1)\.", "norm."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)
"""Replacements for the names of mmpretrain's MAEViT and MAEPretrainDecoder."""


def _from_mmpretrain(name: str) -> str:
    for pattern, replacement in _MMPRETRAIN:
        name = re.sub(pattern, replacement, name)
    return name
