"""Any tensors come back from any message of the Open Inference Protocol; any other message is refused."""

import base64
import json
import struct
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.api.open_inference.messages import InferenceRequest, RequestedOutput, parse_request, write_response
from service.api.open_inference.tensors import Tensor
from tests.service.api.test_properties_bodies import BYTES, JSON, damage, require_own_error

FORMATS = {
    "BOOL": ("?", st.booleans()),
    **{f"UINT{8 << i}": ("BHIQ"[i], st.integers(0, 2 ** (8 << i) - 1)) for i in range(4)},
    **{f"INT{8 << i}": ("bhiq"[i], st.integers(-(2 ** ((8 << i) - 1)), 2 ** ((8 << i) - 1) - 1)) for i in range(4)},
    **{f"FP{16 << i}": ("efd"[i], st.floats(width=width, allow_nan=False)) for i, width in enumerate((16, 32, 64))},
}
"""The letter of each datatype in Python's struct, and its values."""
SHAPES = st.lists(st.integers(0, 4), max_size=3).filter(lambda shape: int(np.prod(shape)) <= 24)
NAMES = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=3, unique=True)


def pack(datatype: str, values: list[Any]) -> bytes:
    """The values as the protocol's documents describe them."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in values)
    return struct.pack(f"<{len(values)}{FORMATS[datatype][0]}", *values)


@st.composite
def messages(draw: Any) -> tuple[bytes, str | None, dict[str, tuple[str, list[int], list[Any]]]]:
    """Body, header, and the tensors: datatype, shape and values."""
    tensors: dict[str, tuple[str, list[int], list[Any]]] = {}
    described, binary = [], b""
    for name in draw(NAMES):
        datatype = draw(st.sampled_from([*FORMATS, "BYTES"]))
        shape = draw(SHAPES)
        count = int(np.prod(shape))
        values = draw(st.lists(BYTES if datatype == "BYTES" else FORMATS[datatype][1], min_size=count, max_size=count))
        tensors[name] = datatype, shape, values
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        is_finite = all(not isinstance(value, float) or np.isfinite(value) for value in values)
        if is_finite and draw(st.booleans()):
            texts = [base64.b64encode(value).decode() if isinstance(value, bytes) else value for value in values]
            is_nested = draw(st.booleans()) and len(shape) > 1 and count
            entry["data"] = np.array(texts, object).reshape(shape).tolist() if is_nested else texts
        else:
            data = pack(datatype, values)
            entry["parameters"] = {"binary_data_size": len(data)}
            binary += data
        described.append(entry)
    head = json.dumps({"inputs": described, "id": draw(st.text(max_size=4))}).encode()
    return head + binary, str(len(head)) if binary or draw(st.booleans()) else None, tensors


def values_of(tensor: Tensor) -> list[Any]:
    return tensor.values if isinstance(tensor.values, list) else tensor.values.ravel().tolist()


@given(messages())
def test_any_tensors_are_read(message: tuple[bytes, str | None, dict[str, tuple[str, list[int], list[Any]]]]) -> None:
    body, length, tensors = message
    read = parse_request(body, length, "image").inputs
    assert list(read) == list(tensors)
    for name, (datatype, shape, values) in tensors.items():
        tensor = read[name]
        assert (tensor.name, tensor.datatype, tensor.shape) == (name, datatype, tuple(shape))
        assert pack(datatype, values_of(tensor)) == pack(datatype, values)


@given(messages(), st.data())
def test_any_outputs_are_written(
    message: tuple[bytes, str | None, dict[str, tuple[str, list[int], list[Any]]]], data: st.DataObject
) -> None:
    """What a client reads from the answer by struct is what was given."""
    body, length, tensors = message
    outputs = list(parse_request(body, length, "image").inputs.values())
    numbers = [tensor for tensor in outputs if tensor.datatype != "BYTES"]
    is_binary = data.draw(st.lists(st.booleans(), min_size=len(numbers), max_size=len(numbers)))
    asked = {tensor.name: RequestedOutput(flag) for tensor, flag in zip(numbers, is_binary, strict=True)}
    answer, head = write_response({"id": "7"}, numbers, InferenceRequest({}, outputs=asked))
    content, binary = json.loads(answer[:head]), answer[head:] if head is not None else b""
    assert content["id"] == "7" and [entry["name"] for entry in content["outputs"]] == [one.name for one in numbers]
    for entry in content["outputs"]:
        datatype, shape, values = tensors[entry["name"]]
        assert (entry["datatype"], entry["shape"]) == (datatype, shape)
        if "data" in entry:
            if all(np.isfinite(values)):
                assert pack(datatype, entry["data"]) == pack(datatype, values)
        else:
            size = entry["parameters"]["binary_data_size"]
            assert binary[:size] == pack(datatype, values)
            binary = binary[size:]
    assert binary == b""


@given(messages(), st.none() | st.integers(-3, 400).map(str) | st.text(max_size=5), st.data())
def test_a_damaged_message_is_refused(
    message: tuple[bytes, str | None, object], other: str | None, data: st.DataObject
) -> None:
    body, length, _ = message
    require_own_error(lambda: parse_request(damage(data.draw, body), length, "image"))
    require_own_error(lambda: parse_request(body, other, "image"))


@given(JSON, st.dictionaries(st.sampled_from(["name", "datatype", "shape", "data", "parameters"]), JSON))
def test_any_json_is_read_or_refused(content: Any, entry: dict[str, Any]) -> None:
    for body in (content, {"inputs": content}, {"inputs": [entry]}, {"inputs": [], "outputs": [entry]}):
        require_own_error(lambda body=body: parse_request(json.dumps(body).encode(), None, "image"))
