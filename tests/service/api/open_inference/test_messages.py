"""Messages and tensors against bytes that are written here by hand, as the protocol's documents show them."""

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

from service.api.open_inference.messages import InferenceRequest, parse_request, write_response
from service.api.open_inference.tensors import DTYPES, Tensor, decode_values, encode_values
from service.errors import InvalidParameter, MalformedBody, NoImages

LENGTHS = b"\x03\x00\x00\x00abc\x00\x00\x00\x00\x02\x00\x00\x00de"
"""Three elements of BYTES: abc, an empty one, and de."""


def body(inputs: list[dict[str, Any]], binary: bytes = b"", **content: Any) -> tuple[bytes, str]:
    head = json.dumps({"inputs": inputs, **content}).encode()
    return head + binary, str(len(head))


def entry(name: str, datatype: str, shape: list[int], size: int | None = None, **rest: Any) -> dict[str, Any]:
    described = {"name": name, "datatype": datatype, "shape": shape, **rest}
    return described if size is None else {**described, "parameters": {"binary_data_size": size}}


def parse_one(described: dict[str, Any], binary: bytes = b"") -> Tensor:
    content, length = body([described], binary)
    [tensor] = parse_request(content, length, "image").inputs.values()
    return tensor


def test_inputs_behind_the_json_come_one_after_the_other() -> None:
    described = [
        entry("image", "BYTES", [3, 1], len(LENGTHS)),
        entry("positions", "INT32", [1, 2], 8),
        entry("flags", "BOOL", [2], 2),
    ]
    content, length = body(described, LENGTHS + struct.pack("<ii", -2, 70_000) + b"\x01\x00", id="42")
    request = parse_request(content, length, "image")
    assert request.id == "42" and list(request.inputs) == ["image", "positions", "flags"]
    assert request.inputs["image"] == Tensor("image", "BYTES", (3, 1), [b"abc", b"", b"de"])
    assert np.asarray(request.inputs["positions"].values).tolist() == [[-2, 70_000]]
    assert np.asarray(request.inputs["flags"].values).tolist() == [True, False]


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [[[1], [2]], [[3], [4]]]])
def test_numbers_in_the_json_are_flat_or_nested(data: list[Any]) -> None:
    values = np.asarray(parse_one(entry("x", "UINT8", [2, 2], data=data)).values)
    assert values.dtype == np.uint8 and values.tolist() == [[1, 2], [3, 4]]


def test_elements_of_bytes_in_the_json_are_base64() -> None:
    texts = [base64.b64encode(b"\xff\xd8\xff").decode(), "YQ"]
    assert parse_one(entry("image", "BYTES", [2], data=texts)).values == [b"\xff\xd8\xff", b"a"]
    assert parse_one(entry("image", "BYTES", [2, 1], data=[[text] for text in texts])).values == [b"\xff\xd8\xff", b"a"]


def test_a_body_without_json_is_one_image() -> None:
    request = parse_request(b"\xff\xd8anything", "0", "image")
    assert request.inputs == {"image": Tensor("image", "BYTES", (1,), [b"\xff\xd8anything"])}
    assert request.is_binary("whatever")


@pytest.mark.parametrize("datatype", [name for name in DTYPES if name != "BOOL"])
def test_each_datatype_is_little_endian(datatype: str) -> None:
    formats = {"UINT": "BHIQ", "INT": "bhiq", "FP": "xefd"}
    kind = datatype.rstrip("0123456789")
    size = int(datatype.removeprefix(kind)) // 8
    packed = struct.pack("<2" + formats[kind][size.bit_length() - 1], 1, 5)
    assert np.asarray(decode_values("x", datatype, (2,), memoryview(packed))).tolist() == [1, 5]
    assert encode_values(Tensor("x", datatype, (2,), np.array([1, 5], DTYPES[datatype]))) == packed


MALFORMED = {
    "no JSON": (b"\xff\xd8", None, "no JSON"),
    "a list": (b"[]", None, "the body must be an object"),
    "no inputs": (b"{}", None, "inputs must be a list"),
    "an input that is none": (b'{"inputs": [1]}', None, "an input must be an object"),
    "a length that is none": (b"{}", "x", "must be a length"),
    "a length beyond the body": (b"{}", "3", "at most the body's 2"),
    "a negative length": (b"{}", "-1", "must be a length"),
    "too little": (*body([entry("x", "UINT8", [3], 3)], b"ab"), "behind the JSON 2 are left"),
    "too much": (*body([entry("x", "UINT8", [2], 2)], b"abc"), "1 bytes behind the JSON belong to no input"),
    "another size": (*body([entry("x", "INT32", [2], 4)], b"abcd"), r"INT32 \[2\] has 8"),
    "a size that is none": (*body([entry("x", "UINT8", [2], -2)], b"ab"), "no number of bytes"),
    "elements beyond the end": (*body([entry("x", "BYTES", [4], len(LENGTHS))], LENGTHS), "ends before its 4 elements"),
    "an element beyond the end": (*body([entry("x", "BYTES", [1], 5)], b"\xff\xff\xff\xffa"), "ends before its 1"),
    "bytes behind the elements": (*body([entry("x", "BYTES", [1], len(LENGTHS))], LENGTHS), "behind its 1 elements"),
    "no data": (*body([entry("x", "UINT8", [1])]), "neither data nor"),
    "a shape that is none": (*body([entry("x", "UINT8", [-1], data=[])]), "list of at most 16 sizes"),
    "a deep shape": (*body([entry("x", "UINT8", [1] * 17, data=[1])]), "list of at most 16 sizes"),
    "an empty array too large for NumPy": (
        *body([entry("x", "UINT8", [0, 2**31 - 1, 2**31 - 1, 2**31 - 1], data=[])]),
        "more than 2147483648 values",
    ),
    "its bytes": (*body([entry("x", "INT64", [2**31 - 1, 0, 2**31 - 1], 0)]), "more than 2147483648 values"),
    "an unknown datatype": (*body([entry("x", "BF16", [1], 2)], b"ab"), "datatype BF16, which no model takes"),
    "two of one name": (*body([entry("x", "UINT8", [1], data=[1])] * 2), "two inputs named x"),
    "a number too large": (*body([entry("x", "UINT8", [1], data=[256])]), "not all UINT8"),
    "a fraction": (*body([entry("x", "INT32", [2], data=[1, 0.5])]), "not all INT32"),
    "a text": (*body([entry("x", "INT32", [1], data=["1"])]), "not all INT32"),
    "a null": (*body([entry("x", "FP32", [1], data=[None])]), "not all FP32"),
    "no flag": (*body([entry("x", "BOOL", [1], data=[2])]), "not all BOOL"),
    "ragged": (*body([entry("x", "UINT8", [3], data=[[1], 2, 3])]), "mix values and lists"),
    "too few values": (*body([entry("x", "UINT8", [3], data=[1])]), "has 1 values, and its shape asks for 3"),
    "no base64": (*body([entry("x", "BYTES", [1], data=["(*)"])]), "no base64"),
    "an output twice": (*body([entry("x", "UINT8", [1], data=[1])], outputs=[{"name": "y"}] * 2), "asked for twice"),
    "an output with a word": (
        *body([entry("x", "UINT8", [1], data=[1])], outputs=[{"name": "y", "parameters": {"binary_data": "yes"}}]),
        "true or false",
    ),
    "parameters that are none": (*body([entry("x", "UINT8", [1], data=[1])], parameters=[1]), "must be an object"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_malformed(name: str) -> None:
    content, length, message = MALFORMED[name]
    with pytest.raises(MalformedBody, match=message):
        parse_request(content, length, "image")


def test_an_empty_body_has_no_image() -> None:
    for length in (None, "0"):
        with pytest.raises(NoImages):
            parse_request(b"", length, "image")


def test_shared_memory_is_refused() -> None:
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    content, length = body([{**entry("x", "UINT8", [8]), "parameters": region}])
    with pytest.raises(InvalidParameter, match="the input x lies in shared memory, which is not served"):
        parse_request(content, length, "image")
    content, length = body([], outputs=[{"name": "y", "parameters": region}])
    with pytest.raises(InvalidParameter, match="the output y"):
        parse_request(content, length, "image")


def answer(outputs: list[dict[str, Any]], parameters: dict[str, Any]) -> tuple[bytes, int | None]:
    content, length = body([entry("x", "UINT8", [0], 0)], outputs=outputs, parameters=parameters)
    request: InferenceRequest = parse_request(content, length, "image")
    tensors = [
        Tensor.of("vector", np.array([[0.1, -2]], np.float32)),
        Tensor("label", "BYTES", (1,), ["Köln".encode()]),
        Tensor.of("mask", np.array([[1, 0]], np.uint8)),
    ]
    return write_response({"model_name": "m"}, tensors, request)


def test_an_answer_in_json() -> None:
    content, length = answer([], {})
    assert length is None
    assert json.loads(content) == {
        "model_name": "m",
        "outputs": [
            {"name": "vector", "datatype": "FP32", "shape": [1, 2], "data": [0.1, -2.0]},
            {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["Köln"]},
            {"name": "mask", "datatype": "UINT8", "shape": [1, 2], "data": [1, 0]},
        ],
    }


def test_an_answer_behind_its_json() -> None:
    content, length = answer([{"name": "mask", "parameters": {"binary_data": False}}], {"binary_data_output": True})
    assert length is not None
    head = json.loads(content[:length])
    sizes = [output.get("parameters", {}).get("binary_data_size") for output in head["outputs"]]
    assert sizes == [8, 9, None] and head["outputs"][2]["data"] == [1, 0]
    assert content[length:] == struct.pack("<ff", 0.1, -2) + b"\x05\x00\x00\x00" + "Köln".encode()


def test_one_output_may_be_binary_alone() -> None:
    content, length = answer([{"name": "mask", "parameters": {"binary_data": True}}], {})
    assert content[length:] == b"\x01\x00"
