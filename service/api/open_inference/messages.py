"""Requests and responses of the Open Inference Protocol: a JSON object, and bytes behind it.

The bytes are those of the tensors whose values are not in the JSON, one after the other; the header
`Inference-Header-Content-Length` is the length of the JSON then. All functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from service.api.open_inference.tensors import (
    DTYPES,
    Tensor,
    decode_values,
    encode_values,
    read_json_values,
    require_kind,
)
from service.errors import InvalidParameter, MalformedBody, NoImages

HEADER_LENGTH = "inference-header-content-length"
"""The header with the length of the JSON; 0: the body is the one element of one BYTES input."""
MAX_DIMS = 16
MAX_VALUES = 2**31
"""A shape asks for no more values than this, sizes of 0 left aside; bodies are far smaller."""


class RequestedOutput(NamedTuple):
    """What a request says of one output."""

    binary: bool | None = None
    """Whether it is sent as bytes; None if the request does not say it of this output."""
    classes: int = 0
    """The number of classes to name instead of the probabilities; 0 for the probabilities."""


@dataclass(frozen=True)
class InferenceRequest:
    """A request for an inference."""

    inputs: Mapping[str, Tensor]
    id: str | None = None
    outputs: Mapping[str, RequestedOutput] = field(default_factory=dict)
    """The outputs to answer with; empty for all of the model."""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def is_binary(self, name: str) -> bool:
        """Whether the output `name` is to be sent as bytes."""
        own = self.outputs[name].binary if name in self.outputs else None
        return bool(self.parameters.get("binary_data_output")) if own is None else own


def parse_request(body: bytes, header_length: str | None, raw_input: str) -> InferenceRequest:
    """Parses the body of a request.

    Args:
        body: JSON and the bytes behind it.
        header_length: the header `Inference-Header-Content-Length`; None if there is none.
        raw_input: the name of the input that a body without JSON is.

    Raises:
        NoImages: the body is empty.
        MalformedBody: it is not what the protocol asks for.
        InvalidParameter: a tensor is said to lie in shared memory.
    """
    if not body:
        raise NoImages("the body is empty")
    length = _parse_length(header_length, len(body))
    if length == 0:
        raw = Tensor(raw_input, "BYTES", (1,), [body])
        return InferenceRequest({raw_input: raw}, parameters={"binary_data_output": True})
    try:
        content = orjson.loads(memoryview(body)[:length])
    except ValueError as error:  # orjson's is one
        hint = (
            f": has it bytes behind the JSON, and no header {HEADER_LENGTH.title()}?" if header_length is None else ""
        )
        raise MalformedBody(f"the body is no JSON ({error}){hint}") from error
    content = require_kind(content, dict, "the body")
    id, parameters = content.get("id"), content.get("parameters")
    binary = _BinaryData(memoryview(body)[length:])
    inputs = {}
    for entry in require_kind(content.get("inputs"), list, "inputs"):
        tensor = _parse_input(require_kind(entry, dict, "an input"), binary)
        if tensor.name in inputs:
            raise MalformedBody(f"there are two inputs named {tensor.name}")
        inputs[tensor.name] = tensor
    binary.require_end()
    outputs = {}
    for entry in require_kind(content.get("outputs") or [], list, "outputs"):
        name, output = _parse_output(require_kind(entry, dict, "an output"))
        if name in outputs:
            raise MalformedBody(f"the output {name} is asked for twice")
        outputs[name] = output
    return InferenceRequest(
        inputs,
        None if id is None else str(require_kind(id, (str, int), "id")),
        outputs,
        require_kind(parameters or {}, dict, "parameters"),
    )


def write_response(
    content: Mapping[str, Any], outputs: Sequence[Tensor], request: InferenceRequest
) -> tuple[bytes, int | None]:
    """The body of a response to `request`, and the length of its JSON; None if it is JSON alone.

    `content` is what the JSON says beside the outputs. Elements of BYTES are UTF-8 where they are sent as JSON.
    """
    described, binary = [], []
    for tensor in outputs:
        description: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if request.is_binary(tensor.name):
            data = encode_values(tensor)
            description["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        elif isinstance(tensor.values, list):
            description["data"] = [element.decode() for element in tensor.values]
        else:
            description["data"] = tensor.values.reshape(-1)
        described.append(description)
    head = orjson.dumps({**content, "outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([head, *binary]), len(head) if binary else None


class _BinaryData:
    """The bytes behind the JSON, which the inputs take in their order."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._start = 0

    def take(self, size: int, name: str) -> memoryview:
        end = self._start + size
        if end > len(self._data):
            raise MalformedBody(
                f"the input {name} has {size} bytes by its binary_data_size, and behind the JSON"
                f" {len(self._data) - self._start} are left for it: the header {HEADER_LENGTH.title()} must be the"
                " length of the JSON",
                input=name,
            )
        taken, self._start = self._data[self._start : end], end
        return taken

    def require_end(self) -> None:
        if left := len(self._data) - self._start:
            raise MalformedBody(f"{left} bytes behind the JSON belong to no input")


def _parse_length(header: str | None, size: int) -> int:
    if header is None:
        return size
    text = header.strip()
    if not (text.isascii() and text.isdecimal()) or len(text) > 12 or int(text) > size:
        raise MalformedBody(f"{HEADER_LENGTH.title()} is {text[:20]}: it must be a length, at most the body's {size}")
    return int(text)


def _parse_input(entry: dict[str, Any], binary: _BinaryData) -> Tensor:
    name = require_kind(entry.get("name"), str, "the name of an input")
    datatype = require_kind(entry.get("datatype"), str, f"the datatype of the input {name}")
    shape = _parse_shape(name, entry.get("shape"))
    parameters = require_kind(entry.get("parameters") or {}, dict, f"the parameters of the input {name}")
    if "shared_memory_region" in parameters:
        raise InvalidParameter(
            f"the input {name} lies in shared memory, which is not served: send it in the body",
            parameter="shared_memory_region",
        )
    if datatype != "BYTES" and datatype not in DTYPES:
        raise MalformedBody(f"the input {name} has the datatype {datatype[:20]}, which no model takes", input=name)
    if "binary_data_size" in parameters:
        size = parameters["binary_data_size"]
        if not _is_count(size):
            raise MalformedBody(f"the binary_data_size of the input {name} is no number of bytes", input=name)
        return Tensor(name, datatype, shape, decode_values(name, datatype, shape, binary.take(size, name)))
    if "data" not in entry:
        raise MalformedBody(f"the input {name} has neither data nor a binary_data_size", input=name)
    return Tensor(name, datatype, shape, read_json_values(name, datatype, shape, entry["data"]))


def _parse_shape(name: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(_is_count, shape)):
        raise MalformedBody(f"the shape of the input {name} must be a list of at most {MAX_DIMS} sizes", input=name)
    if math.prod(size or 1 for size in shape) > MAX_VALUES:  # NumPy bounds it for an empty array, too
        raise MalformedBody(f"the shape of the input {name} asks for more than {MAX_VALUES} values", input=name)
    return tuple(shape)


def _is_count(value: Any) -> bool:
    """Whether a value is a whole number that an array may have as a size."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _parse_output(entry: dict[str, Any]) -> tuple[str, RequestedOutput]:
    name = require_kind(entry.get("name"), str, "the name of an output")
    parameters = require_kind(entry.get("parameters") or {}, dict, f"the parameters of the output {name}")
    if "shared_memory_region" in parameters:
        raise InvalidParameter(
            f"the output {name} is to lie in shared memory, which is not served", parameter="shared_memory_region"
        )
    classes, binary = parameters.get("classification", 0), parameters.get("binary_data")
    if not _is_count(classes) or not isinstance(binary, bool | None):
        raise MalformedBody(f"the parameters of the output {name} are not a number of classes and true or false")
    return name, RequestedOutput(binary, classes)
