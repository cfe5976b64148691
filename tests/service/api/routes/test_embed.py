"""POST /embed on the whole app, with an engine whose vectors are known: the forms of its answer."""

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.support.projection import CENTRE, MATRIX, PICTURES, Projection, post, serve, tokens_of

DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "i1", "binary": "u1"}
NPY, OCTETS = {"accept": "application/x-npy"}, {"accept": "application/octet-stream"}


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with serve(Projection()) as client:
        yield client


def whitened(k: int = 7) -> np.ndarray:
    """The vectors of PICTURES on the first `k` axes, in float64."""
    means = np.stack([tokens_of(picture).mean(axis=0) for picture in PICTURES])
    return ((means - CENTRE) @ MATRIX.astype(np.float64))[:, :k]


def test_dimensions_in_the_answer(client: TestClient) -> None:
    response = post(client, "dimensions=3")
    content = response.json()
    np.testing.assert_allclose(content["embeddings"], whitened(3), atol=1e-4)
    variances = 1 / (MATRIX.astype(np.float64) ** 2).sum(axis=0)
    assert content["explained_variance"] == pytest.approx(variances[:3].sum() / variances.sum())
    assert (content["dim"], content["whitened"]) == (3, True)
    assert content["space"] == response.headers["x-mae-space"] and ":whitened:dimensions=3" in content["space"]
    whole = post(client, "whiten=true").json()
    assert whole["dim"] == 7 and "explained_variance" not in whole and "dtype" not in whole


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("dimensions=8", "dimensions"),
        ("dimensions=0", "dimensions"),
        ("dimensions=2&whiten=false", "dimensions"),
        ("dimensions=2&pool=tokens", "dimensions"),
        ("dimensions=2&pool=cls", "dimensions"),
        ("dtype=binary", "dtype"),
        ("dtype=float8", "dtype"),
    ],
)
def test_what_cannot_be_is_refused_with_its_name(client: TestClient, query: str, named: str) -> None:
    error = post(client, query).json()["error"]
    assert (error["code"], error["details"]) == ("invalid_parameter", {"parameter": named})
    assert error["message"].startswith(f"{named}: ")


def values_of(numbers: np.ndarray, scales: list[float] | None) -> np.ndarray:
    """What a client computes from the numbers of an answer."""
    return numbers.astype(np.float64) * (1 if scales is None else np.array(scales)[:, None])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_in_every_form(client: TestClient, dtype: str) -> None:
    query = f"dimensions=5&dtype={dtype}"
    content = post(client, query).json()
    as_numbers = np.array(content["embeddings"])
    assert content.get("dtype", "float32") == dtype and (content["dim"], content["count"]) == (5, 3)

    texts = post(client, f"{query}&encoding=base64").json()["embeddings"]
    as_text = np.stack([np.frombuffer(base64.b64decode(text), DTYPES[dtype]) for text in texts])

    npy = post(client, query, headers=NPY)
    as_npy = np.load(io.BytesIO(npy.content))
    assert as_npy.dtype == np.dtype(DTYPES[dtype])

    octets = post(client, query, headers=OCTETS)
    assert octets.headers["content-type"] == "application/octet-stream"
    shape = [int(length) for length in octets.headers["x-mae-shape"].split(",")]
    assert octets.headers["x-mae-dtype"] == dtype
    as_octets = np.frombuffer(octets.content, DTYPES[dtype]).reshape(shape)

    for form in (as_text, as_npy, as_octets):
        np.testing.assert_array_equal(form.astype(np.float32), as_numbers.astype(np.float32))
    if dtype == "int8":
        for answer in (npy, octets):
            scales = [float(scale) for scale in answer.headers["x-mae-scales"].split(",")]
            np.testing.assert_array_equal(np.float32(scales), np.float32(content["scales"]))
    else:
        assert "scales" not in content and "x-mae-scales" not in octets.headers
    if dtype == "binary":
        np.testing.assert_array_equal(as_octets, np.packbits(whitened(5) > 0, axis=1))
        assert content["space"].endswith(":dimensions=5:binary")
    else:
        values = values_of(as_octets, content.get("scales"))
        tolerance = {"float32": 1e-5, "float16": 1e-3, "int8": 0.5 / 127}[dtype] * np.abs(whitened(5)).max()
        np.testing.assert_allclose(values, whitened(5), atol=tolerance + 1e-6)


def test_gaps_have_no_scale(client: TestClient) -> None:
    content = post(client, "dtype=int8&on_error=skip", b"words").json()
    assert [vector is None for vector in content["embeddings"]] == [False, False, False, True]
    assert [scale is None for scale in content["scales"]] == [False, False, False, True]


def test_tokens_as_int8_have_a_scale_each_and_json_alone_has_a_place_for_them(client: TestClient) -> None:
    content = post(client, "pool=tokens&dtype=int8").json()
    values = np.array(content["embeddings"]) * np.array(content["scales"])[..., None]
    expected = np.stack([tokens_of(picture) for picture in PICTURES])
    np.testing.assert_allclose(values, expected, atol=0.51 / 127 * np.abs(expected).max())
    for accept in (NPY, OCTETS):
        refused = post(client, "pool=tokens&dtype=int8", headers=accept)
        assert (refused.status_code, refused.json()["error"]["details"]) == (406, {"offered": ["application/json"]})
    tokens = post(client, "pool=tokens&dtype=float16", headers=OCTETS)
    assert tokens.headers["x-mae-shape"] == "3,4,8" and len(tokens.content) == 2 * 3 * 4 * 8
