"""What the host does with pooled vectors once the engine has made them: a classification head, and whitening.

NumPy alone, so that serving needs no torch. Both lie in our own safetensors beside the model's tensors, in float32
whatever the model's precision, and neither is part of a compiled graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import safe_open

from model.arrays import Floats
from model.checkpoints.errors import WeightsError
from model.checkpoints.native import HeadConfig, Metadata, Pooled, read_metadata
from model.config import MAEConfig

PREFIXES = ("head.", "whitening.")
ROWS: dict[Pooled, int] = {"cls": 0, "mean": 1}
"""Where the engine puts each pooled vector in its [B, 2, D]."""


@dataclass(frozen=True)
class Head:
    """A linear classifier of one pooled vector; whatever normalised its input in training is folded in.

    Attributes:
        facts: which pooled vector it takes, and the classes' names in the order of the rows.
        weight: float32 [C, D].
        bias: float32 [C].
    """

    facts: HeadConfig
    weight: Floats
    bias: Floats

    def probabilities(self, vectors: Floats) -> Floats:
        """Pooled vectors float32 [B, D] -> softmax over the classes, float32 [B, C]."""
        logits = vectors @ self.weight.T + self.bias
        grown = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(grown / grown.sum(axis=-1, keepdims=True), dtype=np.float32)


@dataclass(frozen=True)
class Whitening:
    """PCA whitening: vectors centred, turned onto their principal axes, and scaled to unit variance along each.

    Attributes:
        centre: mean of the vectors it was fitted on, float32 [D].
        matrix: float32 [D, D'], the axes with the largest variance first.
    """

    centre: Floats
    matrix: Floats

    def apply(self, vectors: Floats) -> Floats:
        """Pooled vectors float32 [B, D] -> float32 [B, D']."""
        return np.asarray((vectors - self.centre) @ self.matrix, dtype=np.float32)


@dataclass(frozen=True)
class Heads:
    """Head and whitening of a model, none by default."""

    head: Head | None = None
    whitening: Mapping[Pooled, Whitening] = field(default_factory=dict)

    def arrays(self) -> dict[str, Floats]:
        """By the names in the file, float32."""
        found: dict[str, Floats] = {}
        if self.head is not None:
            found |= {"head.weight": self.head.weight, "head.bias": self.head.bias}
        for pool, whitening in self.whitening.items():
            found |= {f"whitening.{pool}.centre": whitening.centre, f"whitening.{pool}.matrix": whitening.matrix}
        return found

    @classmethod
    def of(cls, arrays: Mapping[str, Any], metadata: Metadata) -> Self:
        """From what a file holds under `PREFIXES`, NumPy arrays by name.

        Raises:
            WeightsError: they are incomplete, of the wrong shape, not finite, or do not belong to the metadata.
        """
        left = {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}
        width = metadata.config.embed_dim

        def take(name: str, *shape: int | None) -> Floats:
            if name not in left:
                raise WeightsError(f"lacks {name}")
            array = left.pop(name)
            fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
            if not fits or not np.isfinite(array).all():
                raise WeightsError(f"holds {name} as {list(array.shape)}: expected finite {list(shape)}")
            return array

        head = None
        if metadata.head is not None:
            count = len(metadata.head.classes)
            head = Head(metadata.head, take("head.weight", count, width), take("head.bias", count))
        pools = [pool for pool in ROWS if any(name.startswith(f"whitening.{pool}.") for name in left)]
        whitening = {
            pool: Whitening(take(f"whitening.{pool}.centre", width), take(f"whitening.{pool}.matrix", width, None))
            for pool in pools
        }
        if left:
            raise WeightsError(f"holds {min(left)}, which its metadata does not explain")
        return cls(head, whitening)


def pools_of(config: MAEConfig) -> tuple[Pooled, ...]:
    """The pooled vectors of a model: a convolutional one has no cls token."""
    return tuple(pool for pool in ROWS if pool != "cls" or config.has_cls)


def read_heads(path: Path) -> Heads:
    """Head and whitening in one of our own files; none for any other kind of checkpoint.

    Raises:
        WeightsError: as `Heads.of`.
    """
    metadata = None if path.is_dir() else read_metadata(path)
    if metadata is None:
        return Heads()
    with safe_open(path, framework="numpy") as file:
        return Heads.of({name: file.get_tensor(name) for name in file.keys() if is_head_tensor(name)}, metadata)  # noqa: SIM118


def is_head_tensor(name: str) -> bool:
    """Whether a tensor of this name belongs to head or whitening rather than to the model."""
    return name.startswith(PREFIXES)
