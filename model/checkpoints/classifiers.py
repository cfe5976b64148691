"""Classification heads of fine-tuned models: of facebookresearch/mae, timm and Hugging Face.

The head becomes a `Head`, which the host computes from a pooled vector. A layer normalisation after the pooling
(`fc_norm`) stays a part of the model (see `MAEConfig.final_norm`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from model.arrays import Floats
from model.checkpoints.errors import WeightsError
from model.checkpoints.heads import Head, fold_batch_norm
from model.checkpoints.native import HeadConfig, Pooled

PREFIX = "head."
LINEAR = ("head.weight", "head.bias")
PROBE = ("head.1.weight", "head.1.bias", "head.0.running_mean", "head.0.running_var")
"""A linear layer after a BatchNorm without affine: upstream's main_linprobe.py."""
PROBE_EPS = 1e-6
"""Of that BatchNorm."""
POOLS: Mapping[str, Pooled] = {"token": "cls", "avg": "mean"}
"""timm's names of the pooled vectors."""


def take_head_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes the tensors of a head out of a state dict under upstream's names, without the count of batches."""
    taken = {name: tensors.pop(name) for name in list(tensors) if name.startswith(PREFIX)}
    taken.pop("head.0.num_batches_tracked", None)
    return taken


def assumptions(global_pool: object, pool: Pooled, labels: Sequence[str] | None) -> list[str]:
    """Sentences about what a file with a head does not tell."""
    notes = []
    if global_pool in (None, "") and pool == "cls":
        notes.append("its head is taken to read the cls token")
    if labels is None:
        notes.append("it does not name its classes: they are called by their numbers, from 0")
    return notes


def to_head(path: Path, tensors: Mapping[str, Tensor], pool: Pooled, labels: Sequence[str] | None) -> Head:
    """The head of float32 tensors that `take_head_tensors` has taken.

    Args:
        path: the file or folder, for messages.
        tensors: at least one.
        pool: the pooled vector that the head reads.
        labels: the names of the classes in their order; None names them by their numbers, from 0.

    Raises:
        WeightsError: the head is no linear layer, it has no class, or there is another number of labels.
    """
    if tensors.keys() not in (set(LINEAR), set(PROBE)):
        unknown = min(tensors.keys() - {*LINEAR, *PROBE}, default=None)
        content = f"holds {unknown}" if unknown else f"holds no more than {', '.join(sorted(tensors))}"
        raise WeightsError(f"{path} {content}: expected a linear head, {' and '.join(LINEAR)}")
    arrays: list[Floats] = [tensors[name].numpy() for name in (PROBE if PROBE[0] in tensors else LINEAR)]
    weight, bias = arrays[:2]
    if (
        weight.ndim != 2
        or any(array.shape != (weight.shape[1],) for array in arrays[2:])
        or bias.shape != weight.shape[:1]
    ):
        norms = "".join(f" and {name} of {list(tensors[name].shape)}" for name in PROBE[2:] if name in tensors)
        raise WeightsError(f"{path} holds a head of {list(weight.shape)} with a bias of {list(bias.shape)}{norms}")
    if len(weight) == 0:
        raise WeightsError(f"{path} holds a head of 0 classes: expected at least one")
    if not all(np.isfinite(array).all() for array in arrays):
        raise WeightsError(f"{path} holds infinities or NaN in its head: expected finite weights")
    if len(arrays) > 2:
        weight, bias = fold_batch_norm(weight, bias, arrays[2], arrays[3], PROBE_EPS)
    if labels is None:
        labels = [str(number) for number in range(len(weight))]
    if len(labels) != len(weight):
        raise WeightsError(f"{path} names {len(labels)} classes, and its head tells {len(weight)} apart")
    return Head(HeadConfig(pool=pool, classes=tuple(labels)), weight, bias)


def require_width(path: Path, head: Head | None, width: int) -> None:
    """Raises WeightsError unless the head, if there is one, takes vectors of the encoder's width D."""
    if head is not None and head.weight.shape[1] != width:
        raise WeightsError(
            f"{path} holds a head for vectors {head.weight.shape[1]} wide, and its encoder makes vectors {width} wide"
        )


def pool_of(path: Path, global_pool: object, has_fc_norm: bool) -> Pooled:
    """The pooled vector that a head reads: what `global_pool` tells, or else what the last norm suggests.

    Args:
        path: the file or folder, for messages.
        global_pool: timm's name of the vector, or upstream's answer to whether it is the mean; None if unknown.
        has_fc_norm: whether the mean of the tokens is normed.

    Raises:
        WeightsError: it is another one than cls and mean, or does not fit the norm.
    """
    if isinstance(global_pool, bool):
        global_pool = "avg" if global_pool else "token"
    if global_pool in (None, ""):
        return "mean" if has_fc_norm else "cls"
    if has_fc_norm and global_pool == "token":
        raise WeightsError(
            f"{path} norms the cls token after the pooling (it holds fc_norm, and has global_pool='token'): "
            "expected global_pool='avg' beside an fc_norm"
        )
    if global_pool not in POOLS:
        raise WeightsError(f"{path} has global_pool={global_pool!r}: expected 'token', or 'avg'")
    return POOLS[str(global_pool)]


def labels_of(names: Any) -> list[str] | None:
    """Labels in the order of their classes, from a list, or from a mapping of numbers such as id2label."""
    if isinstance(names, Mapping):
        try:
            names = [names[key] for key in sorted(names, key=int)]
        except ValueError:
            return None
    return [str(name) for name in names] if isinstance(names, list | tuple) and names else None
