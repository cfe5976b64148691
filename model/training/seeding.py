"""NumPy's random generators for many seeds at once, which is several times faster than one after the other.

Most of the time of `numpy.random.default_rng(seed)` goes into `SeedSequence`, which hashes the seed (after
O'Neill 2015, seed_seq_fe). Its results are frozen across versions of NumPy. Here its arithmetic runs on arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray

Words = NDArray[np.uint32]
POOL = 4
"""Words that a seed is mixed into."""
INIT_A, MULTIPLIER_A = 0x43B0D7E5, 0x931E8875
INIT_B, MULTIPLIER_B = 0x8B51F9DD, 0x58F38DED
MIX_LEFT, MIX_RIGHT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
SHIFT = np.uint32(16)


def make_bit_generators(seeds: Words) -> list[np.random.PCG64]:
    """Makes `PCG64(SeedSequence(words))` for the words of each seed, uint32 [n, at most 4].

    A seed that is an integer or a tuple of integers has the words of each in turn, 32 bits in a word, the lowest bits
    first. Words that are 0 at the end of the four make no difference.
    """
    # NumPy's annotations do not have the interface ISeedSequence, which its documentation allows.
    return [np.random.PCG64(_HashedSeed(state)) for state in _hash_seeds(seeds)]  # type: ignore[arg-type]


class _HashedSeed(ISeedSequence):
    """A seed whose hash is known."""

    def __init__(self, state: NDArray[np.uint64]) -> None:
        self._state = state

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint32) -> NDArray[np.uint64]:
        return self._state


def _hash_seeds(seeds: Words) -> NDArray[np.uint64]:
    """What `SeedSequence(words).generate_state(4, np.uint64)` gives for the words of each seed, [n, 4]."""
    factor = INIT_A

    def hash_words(words: Words) -> Words:
        nonlocal factor
        words = words ^ np.uint32(factor)
        factor = factor * MULTIPLIER_A % 2**32
        words = words * np.uint32(factor)
        return words ^ (words >> SHIFT)

    entropy = np.zeros((POOL, len(seeds)), np.uint32)
    entropy[: seeds.shape[1]] = seeds.T
    pool = [hash_words(words) for words in entropy]
    for source in range(POOL):
        for target in range(POOL):
            if source != target:
                mixed = MIX_LEFT * pool[target] - MIX_RIGHT * hash_words(pool[source])
                pool[target] = mixed ^ (mixed >> SHIFT)
    state = np.empty((len(seeds), 2 * POOL), np.uint32)
    factor = INIT_B
    for word in range(2 * POOL):
        hashed = pool[word % POOL] ^ np.uint32(factor)
        factor = factor * MULTIPLIER_B % 2**32
        hashed = hashed * np.uint32(factor)
        state[:, word] = hashed ^ (hashed >> SHIFT)
    return state.astype("<u4").view("<u8").astype(np.uint64)
