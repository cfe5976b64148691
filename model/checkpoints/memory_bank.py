"""A memory bank: patch tokens of normal images, and what normal images score against it (Roth et al. 2022, PatchCore).

The module imports no torch, so that serving needs none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, ConfigDict

from model.arrays import Floats

LEAST_SCORE = 1e-9
"""Takes the place of smaller scores where their logarithm is taken."""


class MemoryBankInfo(BaseModel):
    """The size of a memory bank."""

    model_config = ConfigDict(frozen=True)

    tokens: int
    """Number of patch tokens in the bank."""
    images: int
    """Number of normal images that the bank and its threshold come from."""
    bytes: int
    """Size of the bank in the file of weights."""
    image_size: int
    """Side in pixels of the squares that the images were compared as."""


@dataclass(frozen=True)
class MemoryBank:
    """Patch tokens of normal images.

    Attributes:
        tokens: float32 [M, D].
        scores: score of each of n normal images against a bank without it, ascending, float32 [n], n at least 2.
        image_size: side in pixels of the squares that the images were compared as.
    """

    tokens: Floats
    scores: Floats
    image_size: int

    @property
    def info(self) -> MemoryBankInfo:
        """Its size."""
        return MemoryBankInfo(
            tokens=len(self.tokens),
            images=len(self.scores),
            bytes=self.tokens.nbytes + self.scores.nbytes,
            image_size=self.image_size,
        )

    def distances(self, tokens: Floats) -> Floats:
        """Euclidean distance of each token of an image to the nearest one in the bank, [N, D] -> float32 [N]."""
        return nearest_distances(tokens, self.tokens)

    def threshold(self, false_alarms: float) -> float:
        """The score that a share `false_alarms` of new normal images exceeds, 0 to 1 without its ends.

        It is the k-th smallest score, k = ceil((n + 1) (1 - false_alarms)), as in split conformal prediction: at most
        this share of normal images is then flagged, if they are like those of the fit. Where n images are too few for
        the share, so that k > n, the scores' logarithms are taken as normally distributed, and the threshold is at
        least the largest score.
        """
        n = len(self.scores)
        rank = math.ceil((n + 1) * (1 - false_alarms))
        if rank <= n:
            return float(self.scores[rank - 1])
        logarithms = np.log(np.maximum(self.scores.astype(np.float64), LEAST_SCORE))
        # The spread of one more score around the mean of n others.
        spread = float(logarithms.std(ddof=1)) * math.sqrt(1 + 1 / n)
        beyond = math.exp(float(logarithms.mean()) + NormalDist().inv_cdf(1 - false_alarms) * spread)
        return max(float(self.scores[-1]), beyond)


def use_one_blas_thread() -> None:
    """Gives the products of NumPy one thread for the whole process, for distances to a memory bank in many threads.

    A product of 196 tokens and 2,000 others takes 2 ms. OpenBLAS would divide it among threads that wait actively, and
    take 16 ms of CPU time on two cores from the engine's lanes.
    """
    from threadpoolctl import ThreadpoolController

    ThreadpoolController().select(internal_api="openblas").limit(limits=1)


def nearest_distances(tokens: Floats, bank: Floats) -> Floats:
    """Euclidean distance of each of `tokens` [N, D] to the nearest token in `bank` [M, D], float32 [N]."""
    products = tokens @ bank.T  # [N, M]
    nearest = (np.square(bank).sum(axis=1) - 2 * products).argmin(axis=1)
    # Not by the products: they lose the digits of small distances.
    return np.asarray(np.linalg.norm(tokens - bank[nearest], axis=1), dtype=np.float32)
