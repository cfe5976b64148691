"""Heads: a classification, a whitening and a memory bank, which the host applies to an engine's vectors and tokens.

The module imports no torch, so that serving needs none. All heads lie in our own safetensors beside the model's
tensors, in float32 whatever the model's precision. None is part of a compiled graph. `heads_file` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from model.arrays import Floats
from model.checkpoints.errors import WeightsError
from model.checkpoints.memory_bank import MemoryBank
from model.checkpoints.native import HeadConfig, Metadata, Pooled
from model.config import MAEConfig

PREFIXES = ("head.", "whitening.", "memory_bank.")
POOL_INDEX: dict[Pooled, int] = {"cls": 0, "mean": 1}
"""Index of each pooled vector in the [B, 2, D] that an engine returns."""


@dataclass(frozen=True)
class Head:
    """A linear classifier of one pooled vector; the normalisation of its input in training is folded into it.

    Attributes:
        config: which pooled vector it takes, and the names of its C classes.
        weight: float32 [C, D].
        bias: float32 [C].
    """

    config: HeadConfig
    weight: Floats
    bias: Floats

    def probabilities(self, vectors: Floats) -> Floats:
        """Pooled vectors float32 [B, D] -> softmax over the classes, float32 [B, C]."""
        logits = vectors @ self.weight.T + self.bias
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True), dtype=np.float32)


@dataclass(frozen=True)
class Whitening:
    """PCA whitening: it centres vectors, projects them on their principal axes and scales each to unit variance.

    Attributes:
        centre: mean of the vectors that the whitening was fitted on, float32 [D].
        matrix: axes by column, those with the largest variance first, float32 [D, D'].
    """

    centre: Floats
    matrix: Floats

    def apply(self, vectors: Floats) -> Floats:
        """Pooled vectors float32 [B, D] -> float32 [B, D']."""
        return np.asarray((vectors - self.centre) @ self.matrix, dtype=np.float32)

    @cached_property
    def explained_variance(self) -> NDArray[np.float64]:
        """Share of the variance that the first 1, 2, …, D' axes hold together, float64 [D'].

        A column of the matrix is an axis of length 1, divided by the standard deviation along it.
        """
        variances = 1 / np.square(self.matrix, dtype=np.float64).sum(axis=0)
        shares: NDArray[np.float64] = np.cumsum(variances) / variances.sum()
        return shares

    def keep_axes(self, count: int) -> Whitening:
        """The whitening that projects on the first `count` axes alone, which hold the most variance."""
        return Whitening(self.centre, self.matrix[:, :count])


@dataclass(frozen=True)
class Heads:
    """Classification head, whitening and memory bank of a model; by default it has none of them."""

    head: Head | None = None
    whitening: Mapping[Pooled, Whitening] = field(default_factory=dict)
    memory_bank: MemoryBank | None = None

    def arrays(self) -> dict[str, Floats]:
        """All arrays, float32, by their names in the file."""
        arrays: dict[str, Floats] = {}
        if self.head is not None:
            arrays |= {"head.weight": self.head.weight, "head.bias": self.head.bias}
        for pool, whitening in self.whitening.items():
            arrays |= {f"whitening.{pool}.centre": whitening.centre, f"whitening.{pool}.matrix": whitening.matrix}
        if (bank := self.memory_bank) is not None:
            arrays |= {"memory_bank.tokens": bank.tokens, "memory_bank.scores": bank.scores}
        return arrays

    @classmethod
    def from_arrays(cls, path: Path, arrays: Mapping[str, Any], metadata: Metadata) -> Self:
        """Makes the heads from the NumPy arrays that a file has under `PREFIXES`.

        Args:
            path: the file, for messages.
            arrays: the arrays by name.
            metadata: the file's metadata.

        Raises:
            WeightsError: arrays are missing, of the wrong shape, not finite, or do not belong to the metadata.
        """
        left = {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}
        width = metadata.config.embed_dim

        def take(name: str, *shape: int | None) -> Floats:
            if name not in left:
                raise WeightsError(f"{path} lacks {name}")
            array = left.pop(name)
            fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
            if not fits or not np.isfinite(array).all():
                raise WeightsError(f"{path} holds {name} as {list(array.shape)}: expected finite {list(shape)}")
            return array

        head = None
        if metadata.head is not None:
            count = len(metadata.head.classes)
            head = Head(metadata.head, take("head.weight", count, width), take("head.bias", count))
        pools = [pool for pool in POOL_INDEX if any(name.startswith(f"whitening.{pool}.") for name in left)]
        whitening = {
            pool: Whitening(take(f"whitening.{pool}.centre", width), take(f"whitening.{pool}.matrix", width, None))
            for pool in pools
        }
        bank = None
        if any(name.startswith("memory_bank.") for name in left):
            tokens, scores = take("memory_bank.tokens", None, width), take("memory_bank.scores", None)
            bank = MemoryBank(tokens, scores, metadata.config.image_size)
            if not len(bank.tokens) or len(bank.scores) < 2 or np.any(np.diff(bank.scores) < 0):
                raise WeightsError(f"{path} holds a memory bank without tokens, or without two ascending scores")
        if left:
            raise WeightsError(f"{path} holds {min(left)}, which its metadata does not explain")
        return cls(head, whitening, bank)


def fold_batch_norm(weight: Floats, bias: Floats, mean: Floats, variance: Floats, eps: float) -> tuple[Floats, Floats]:
    """Folds a BatchNorm without affine, in eval mode, into the linear layer after it: weight [C, D] and bias [C].

    Args:
        weight: of the linear layer, [C, D].
        bias: of the linear layer, [C].
        mean: the BatchNorm's running mean [D].
        variance: its running variance [D].
        eps: what it adds to the variance.
    """
    folded = weight.astype(np.float64) / np.sqrt(variance.astype(np.float64) + eps)
    shifted = bias.astype(np.float64) - folded @ mean.astype(np.float64)
    return folded.astype(np.float32), shifted.astype(np.float32)


def pools_of(config: MAEConfig) -> tuple[Pooled, ...]:
    """The pooled vectors of a model; not every one has a vector of the cls token."""
    return tuple(pool for pool in POOL_INDEX if pool != "cls" or config.has_cls)


def why_no_cls(config: MAEConfig) -> str:
    """Why a model has no vector of a cls token, to go on after its name."""
    if config.family == "vit":
        return "was fine-tuned on the mean of its tokens, and its cls token stands for nothing"
    return "is convolutional and has no cls token"


def is_head_tensor(name: str) -> bool:
    """Tells whether a tensor of this name belongs to a head rather than to the model."""
    return name.startswith(PREFIXES)
