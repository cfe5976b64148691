"""Tensors of the Open Inference Protocol: their values as bytes, by its binary extension, or in JSON.

The protocol: https://github.com/kserve/open-inference-protocol, and Triton's extension "binary tensor data". All
functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from struct import Struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.api.base64_text import decode_base64
from service.errors import MalformedBody

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(bool),
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
"""The numeric datatypes, little-endian. NumPy lacks BF16, and no model here takes or gives it."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LENGTH = Struct("<I")
"""The length of an element of BYTES, before its bytes."""


class Tensor(NamedTuple):
    """A named tensor of a request or a response."""

    name: str
    datatype: str
    """A key of `DTYPES`, or BYTES."""
    shape: tuple[int, ...]
    values: NDArray[Any] | list[bytes]
    """An array of `shape`; the elements of BYTES in row-major order."""

    @classmethod
    def of(cls, name: str, array: NDArray[Any]) -> Tensor:
        """A tensor of numbers."""
        array = np.ascontiguousarray(array)
        return cls(name, NAMES[array.dtype], array.shape, array)


def encode_values(tensor: Tensor) -> bytes:
    """The values of a tensor as bytes: numbers little-endian, each element of BYTES behind its length."""
    if isinstance(tensor.values, list):
        return b"".join(chain.from_iterable((LENGTH.pack(len(element)), element) for element in tensor.values))
    return tensor.values.astype(DTYPES[tensor.datatype], copy=False).tobytes()


def decode_values(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> NDArray[Any] | list[bytes]:
    """The values that `encode_values` writes; an array is a read-only view of `data`.

    Raises:
        MalformedBody: the bytes are not those of a tensor of this datatype and shape.
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return _decode_elements(name, count, data)
    dtype = DTYPES[datatype]
    if len(data) != count * dtype.itemsize:
        raise MalformedBody(
            f"the input {name} has {len(data)} bytes: {datatype} {list(shape)} has {count * dtype.itemsize}", input=name
        )
    return np.frombuffer(data, dtype).reshape(shape)


def read_json_values(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> NDArray[Any] | list[bytes]:
    """The values of an input that lies in the JSON: a list, flat or nested; elements of BYTES are base64."""
    values = _flatten(name, data, math.prod(shape))
    if datatype == "BYTES":
        return [_read_element(name, value) for value in values]
    dtype = DTYPES[datatype]
    numbers = all(isinstance(value, int | float) for value in values)  # an array of texts could be huge
    array = np.array(values) if values and numbers else np.empty(0, dtype)
    if not numbers:
        fits = False
    elif dtype.kind == "b":
        fits = array.dtype.kind == "b" or (array.dtype.kind == "i" and ((array == 0) | (array == 1)).all())
    elif dtype.kind == "f":
        fits = array.dtype.kind in "iuf"
    else:
        bounds = np.iinfo(dtype)
        fits = array.dtype.kind in "iu" and (
            not array.size or (array.min() >= bounds.min and array.max() <= bounds.max)
        )
    if not fits:
        raise MalformedBody(f"the data of the input {name} are not all {datatype}", input=name)
    return array.astype(dtype).reshape(shape)


def _decode_elements(name: str, count: int, data: memoryview) -> list[bytes]:
    elements, start = [], 0
    for _ in range(count):
        begin = start + LENGTH.size
        if begin > len(data) or (start := begin + LENGTH.unpack_from(data, begin - LENGTH.size)[0]) > len(data):
            raise MalformedBody(f"the input {name} ends before its {count} elements do", input=name)
        elements.append(bytes(data[begin:start]))
    if start != len(data):
        raise MalformedBody(f"the input {name} has {len(data) - start} bytes behind its {count} elements", input=name)
    return elements


def _flatten(name: str, data: Any, count: int) -> list[Any]:
    """The values of nested lists in their order."""
    values: list[Any] = require_kind(data, list, f"the data of the input {name}")
    while any(isinstance(value, list) for value in values):
        if not all(isinstance(value, list) for value in values):
            raise MalformedBody(f"the data of the input {name} mix values and lists", input=name)
        values = list(chain.from_iterable(values))
    if len(values) != count:
        raise MalformedBody(f"the input {name} has {len(values)} values, and its shape asks for {count}", input=name)
    return values


def _read_element(name: str, value: Any) -> bytes:
    try:
        return decode_base64(require_kind(value, str, f"an element of the input {name}"))
    except ValueError as error:
        raise MalformedBody(
            f"an element of the input {name} is no base64, by which JSON carries BYTES: {error}", input=name
        ) from error


def require_kind(value: Any, kind: type | tuple[type, ...], name: str) -> Any:
    """Returns `value`, a part of a JSON body.

    Raises:
        MalformedBody: it is not of a `kind`; `name` is the subject of the message.
    """
    if not isinstance(value, kind) or isinstance(value, bool):
        words = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}
        expected = " or ".join(words[one] for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise MalformedBody(f"{name} must be {expected}")
    return value
