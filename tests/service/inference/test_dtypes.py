"""The types of numbers: what a client gets back from them, against NumPy's own roundings and plain arithmetic."""

import numpy as np
import pytest

from service.inference.dtypes import convert_vectors

VECTORS = np.random.default_rng(5).normal(size=(20, 33)).astype(np.float32) * np.geomspace(1e-3, 1e3, 20)[:, None]
VECTORS = VECTORS.astype(np.float32)


def test_float32_is_left_alone() -> None:
    numbers, scales = convert_vectors(VECTORS, "float32")
    assert numbers is VECTORS and scales is None


def test_float16_is_the_nearest_and_never_infinite() -> None:
    numbers, scales = convert_vectors(VECTORS, "float16")
    assert numbers.dtype == np.float16 and scales is None
    np.testing.assert_allclose(numbers.astype(np.float64), VECTORS, rtol=2**-11, atol=2**-25)
    large, _ = convert_vectors(np.array([[1e6, -1e6, 1]], np.float32), "float16")
    assert large.tolist() == [[65504, -65504, 1]]


def test_int8_times_the_scale_is_the_vector() -> None:
    numbers, scales = convert_vectors(VECTORS, "int8")
    assert numbers.dtype == np.int8 and scales is not None and scales.dtype == np.float32
    assert np.abs(numbers.astype(int)).max(axis=1).tolist() == [127] * len(VECTORS)  # each vector fills the range
    errors = np.abs(numbers * scales[:, None].astype(np.float64) - VECTORS).max(axis=1)
    assert (errors <= 0.501 * np.abs(VECTORS).max(axis=1) / 127).all()


def test_a_vector_of_zeros_stays_zeros() -> None:
    numbers, scales = convert_vectors(np.zeros((2, 5), np.float32), "int8")
    assert not numbers.any() and scales is not None and scales.tolist() == [0, 0]


def test_every_token_has_its_own_scale() -> None:
    tokens = VECTORS.reshape(4, 5, 33)
    numbers, scales = convert_vectors(tokens, "int8")
    assert scales is not None and scales.shape == (4, 5)
    flat, flat_scales = convert_vectors(VECTORS, "int8")
    np.testing.assert_array_equal(numbers.reshape(20, 33), flat)
    np.testing.assert_array_equal(scales.ravel(), flat_scales)


@pytest.mark.parametrize("width", [1, 8, 33])
def test_binary_holds_the_signs_eight_to_a_byte(width: int) -> None:
    vectors = VECTORS[:, :width]
    numbers, scales = convert_vectors(vectors, "binary")
    assert numbers.dtype == np.uint8 and numbers.shape == (20, -(-width // 8)) and scales is None
    for vector, row in zip(vectors.tolist(), numbers.tolist(), strict=True):
        bits = "".join(f"{byte:08b}" for byte in row)
        assert bits == "".join("1" if value > 0 else "0" for value in vector).ljust(len(bits), "0")
