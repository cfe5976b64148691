import json

import numpy as np
import pytest

from service.api.responses import header_value, json_bytes, json_response, preferred_type
from service.errors import NotAcceptable

OFFERED = ("image/png", "application/json")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "image/png"),
        (" , ", "image/png"),
        ("*/*", "image/png"),
        ("image/png", "image/png"),
        ("application/json", "application/json"),
        ("APPLICATION/JSON", "application/json"),
        ("application/json; charset=utf-8", "application/json"),
        ("application/*", "application/json"),
        ("text/html, application/*", "application/json"),
        # the weights decide, not the order
        ("image/png;q=0.5, application/json;q=0.9", "application/json"),
        ("image/png;q=0.5, application/json", "application/json"),
        ("image/png ; Q=0.1 , application/json;q=0.2", "application/json"),
        ("application/json, image/png", "image/png"),
        ("image/png;q=0.300, application/json;q=0.301", "application/json"),
        # the most specific range decides about each type
        ("*/*, image/png;q=0.1", "application/json"),
        ("*/*;q=0.5, image/*;q=0.1", "application/json"),
        ("image/*;q=0.9, image/png;q=0.2, */*;q=0.5", "application/json"),
        # weight 0 is a refusal
        ("image/png;q=0, */*", "application/json"),
        ("image/*;q=0.0, application/json;q=0.001", "application/json"),
        ("image/png;q=0.000, application/json;q=1.000", "application/json"),
        # browsers
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", "image/png"),
        ("image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5", "image/png"),
        # no weight at all is worth nothing
        ("image/png;q=high, application/json", "application/json"),
        ("image/png;q=nan, application/json;q=0.1", "application/json"),
        ("image/png;q=7, application/json;q=0.1", "application/json"),
        ("image/png;q=inf, application/json;q=0.1", "application/json"),
        ("image/png;q=-1, application/json;q=0.1", "application/json"),
        ("garbage, ;;;, /, application/json", "application/json"),
    ],
)
def test_the_type_that_the_client_likes_best(accept: str, chosen: str) -> None:
    assert preferred_type(accept, OFFERED) == chosen


@pytest.mark.parametrize(
    "accept",
    ["text/html", "image/*;q=0", "*/*;q=0", "image/png;q=0, application/json;q=0", "png", "*/png", "image/jpeg"],
)
def test_nothing_acceptable_is_406(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="allows none of image/png, application/json") as refusal:
        preferred_type(accept, OFFERED)
    assert refusal.value.status == 406
    assert refusal.value.details == {"offered": list(OFFERED)}


def test_json_takes_arrays_and_gives_float32_back_exactly() -> None:
    vector = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    parsed = json.loads(json_bytes({"vector": vector, "mask": np.array([0, 1], np.uint8), "text": "é"}))
    assert np.array_equal(np.array(parsed["vector"], np.float32), vector)
    assert parsed["mask"] == [0, 1]
    assert parsed["text"] == "é"


def test_a_json_response_has_its_type_its_status_and_its_headers() -> None:
    response = json_response({"a": 1}, 503, {"x-a": "b"})
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-a"] == "b"
    assert json.loads(response.body) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("mae_tiny@0123", "mae_tiny@0123"),
        ("naïve 100 %", "naïve 100 %"),
        ("50 % 我", "50 %25 %E6%88%91"),
        ("a\r\nb", "a%0D%0Ab"),
        ("a\x85b", "a%C2%85b"),
        ("\udcff我", "?%E6%88%91"),
    ],
)
def test_the_value_of_a_header(text: str, header: str) -> None:
    assert header_value(text) == header
    header.encode("latin-1")
