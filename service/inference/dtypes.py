"""The types of numbers that vectors are answered in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.arrays import Floats
from service.parameters import DType

LARGEST_INT8 = 127
LARGEST_FLOAT16 = np.finfo(np.float16).max


class TypedVectors(NamedTuple):
    """Vectors in the type of a request."""

    numbers: NDArray[Any]
    """Float32, float16 or int8 […, D]; for `binary` the signs, uint8 […, ceil(D / 8)]."""
    scales: Floats | None
    """For `int8`: the factor by which each vector's numbers are multiplied to get its values, float32 […]."""


def convert_vectors(vectors: Floats, dtype: DType) -> TypedVectors:
    """Vectors float32 […, D] in the type `dtype`.

    - `float16`: rounded to the nearest; larger numbers than a float16 holds become the largest that it holds.
    - `int8`: the multiples of a vector's own scale, which is its largest absolute value / 127, from -127 to 127. A
      vector of zeros has the scale 0.
    - `binary`: 1 for a positive number, else 0, eight to a byte; the first of eight is the highest bit, and the bits
      after the last number are 0 (`numpy.packbits`).
    """
    if dtype == "float16":
        return TypedVectors(np.clip(vectors, -LARGEST_FLOAT16, LARGEST_FLOAT16).astype(np.float16), None)
    if dtype == "int8":
        scales = np.abs(vectors).max(axis=-1) / np.float32(LARGEST_INT8)
        divisors = np.where(scales > 0, scales, np.float32(1))[..., None]
        multiples = np.clip(np.rint(vectors / divisors), -LARGEST_INT8, LARGEST_INT8)
        return TypedVectors(multiples.astype(np.int8), scales)
    if dtype == "binary":
        return TypedVectors(np.packbits(vectors > 0, axis=-1), None)
    return TypedVectors(vectors, None)
