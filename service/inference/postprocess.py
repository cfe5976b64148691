"""Vectors between the engine and the answer: whitened, then scaled to length 1; for routes and commands alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from model.arrays import Floats
from model.checkpoints.heads import Heads, Whitening
from model.config import MAEConfig
from service.errors import InvalidParameter
from service.parameters import EmbedParameters


@dataclass(frozen=True)
class Postprocessing:
    """How vectors are finished."""

    whitening: Whitening | None
    normalize: bool

    @classmethod
    def of(cls, heads: Heads, parameters: EmbedParameters) -> Self:
        """As a request asks for.

        Raises:
            InvalidParameter: it asks for whitening that the model does not hold.
        """
        whitening = None
        if parameters.whiten:
            if parameters.pool == "tokens":
                raise InvalidParameter(
                    "whiten: tokens are never whitened, only pool=mean and pool=cls", parameter="whiten"
                )
            whitening = heads.whitening.get(parameters.pool)
            if whitening is None:
                raise InvalidParameter(
                    f"whiten: the model holds no whitening of pool={parameters.pool}: mae evaluate --fit adds it",
                    parameter="whiten",
                )
        return cls(whitening, parameters.normalize)

    def dim(self, config: MAEConfig) -> int:
        """Length of a finished vector."""
        return config.embed_dim if self.whitening is None else self.whitening.matrix.shape[1]

    def apply(self, rows: Sequence[Floats]) -> Floats:
        """The engine's vectors float32 [B] of [D], or of [K, D] for tokens -> [B, D'], or [B, K, D]."""
        if self.whitening is not None:
            # One at a time: a product of matrices rounds differently with the number of rows, and an image's vector
            # must not depend on its company.
            rows = [self.whitening.apply(row) for row in rows]
        vectors: Floats = np.stack(rows)
        if self.normalize:
            lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
            vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
        return vectors
