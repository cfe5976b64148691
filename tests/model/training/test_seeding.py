import numpy as np
import pytest

from model.training.dataset import SampleOrder
from model.training.seeding import make_bit_generators


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_generators_are_those_of_numpy(length: int) -> None:
    seeds = np.random.default_rng(length).integers(0, 2**32, (20, length), dtype=np.uint32)
    seeds[0], seeds[1] = 0, 2**32 - 1
    for words, bits in zip(seeds.tolist(), make_bit_generators(seeds), strict=True):
        assert np.array_equal(bits.random_raw(8), np.random.PCG64(words).random_raw(8))


@pytest.mark.parametrize("seed", [0, 7, 2**40])
@pytest.mark.parametrize("first", [0, 2**32 - 2])
def test_the_draws_of_several_samples_are_those_of_each(seed: int, first: int) -> None:
    order = SampleOrder(10, seed, 4, 0, 1)
    numbers = range(first, first + 4)
    for number, rng in zip(numbers, order.rngs_of(numbers), strict=True):
        expected = np.random.default_rng((seed, 1, number))
        assert np.array_equal(rng.random(5), expected.random(5)) and rng.integers(2**63) == expected.integers(2**63)
