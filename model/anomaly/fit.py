"""Fitting a memory bank on patch tokens of normal images (PatchCore, Roth et al. 2022, algorithm 1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from model.anomaly.scores import image_score
from model.arrays import Floats
from model.checkpoints.memory_bank import MemoryBank, nearest_distances

PARTS = 5
"""Parts of the normal images, of which each is scored against a bank of the others."""
PROJECTED = 64
"""Numbers of a token in the search for a coreset: a random projection keeps distances well enough."""
MAX_CANDIDATES = 200_000
"""Tokens that a coreset is chosen from, 1,000 images of 196 patches; of more, a random part is taken."""


class FitConfig(BaseModel):
    """The options of a fit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bank_tokens: int = Field(2000, ge=1, le=1_000_000, description="most tokens that the memory bank keeps")
    limit: int = Field(1000, ge=2, description="most images to fit on, drawn by the seed")
    seed: int = Field(0, ge=0, description="seed of the images, the parts and the choice of tokens")


class FitError(ValueError):
    """No memory bank can be fitted on the images; the message is one sentence that says why."""


def fit_memory_bank(tokens: Floats, size: int, image_size: int, seed: int) -> MemoryBank:
    """Fits a memory bank of at most `size` tokens, and measures what normal images score that are not in it.

    Those scores are cross-validated: the images are drawn into `PARTS` parts, and each part is scored against a bank of
    the others, which has as many tokens.

    Args:
        tokens: patch tokens of n normal images, float32 [n, N, D].
        size: the most tokens in the bank.
        image_size: side in pixels of the squares that the images were compared as.
        seed: of the parts and of the search for tokens.

    Raises:
        FitError: there are fewer than two images.
    """
    count = len(tokens)
    if count < 2:
        raise FitError(f"a fit needs two images or more, and there is {count}")
    generator = np.random.default_rng(seed)
    part_of = generator.permutation(count) % min(PARTS, count)
    scores = np.empty(count, np.float32)
    for part in range(min(PARTS, count)):
        others = _reduce(tokens[part_of != part], size, generator)
        for number in np.flatnonzero(part_of == part):
            scores[number] = image_score(nearest_distances(tokens[number], others))
    return MemoryBank(_reduce(tokens, size, generator), np.sort(scores), image_size)


def choose_coreset(tokens: Floats, size: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """Numbers of at most `size` of the tokens [M, D] that lie near all others: greedy k-centre.

    Each next token is the one farthest from all chosen ones, in a random projection of the tokens.
    """
    if len(tokens) <= size:
        return np.arange(len(tokens))
    projected = tokens
    if tokens.shape[1] > PROJECTED:
        projection = generator.standard_normal((tokens.shape[1], PROJECTED)) / PROJECTED**0.5
        projected = tokens @ projection.astype(np.float32)
    squares = np.square(projected).sum(axis=1)
    chosen = np.empty(size, np.intp)
    chosen[0] = generator.integers(len(tokens))
    distances = np.full(len(tokens), np.inf)  # squared, to the nearest chosen token
    for number in range(1, size):
        last = chosen[number - 1]
        distances = np.minimum(distances, squares + squares[last] - 2 * projected @ projected[last])
        chosen[number] = distances.argmax()
    return chosen


def _reduce(tokens: Floats, size: int, generator: np.random.Generator) -> Floats:
    """A coreset of the tokens of images [n, N, D]: [M, D]."""
    flat = tokens.reshape(-1, tokens.shape[-1])
    if len(flat) > MAX_CANDIDATES:
        flat = flat[generator.choice(len(flat), MAX_CANDIDATES, replace=False)]
    return np.ascontiguousarray(flat[choose_coreset(flat, size, generator)])
