import http
import inspect

import orjson
import pytest

from service import errors
from service.errors import ServiceError

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ServiceError)]


def test_the_contracts_statuses() -> None:
    by_status: dict[int, set[str]] = {}
    for kind in CLASSES:
        by_status.setdefault(kind.status, set()).add(kind.code)
    assert by_status == {
        400: {"undecodable_image", "malformed_body", "no_images", "images_only", "malformed_request", "not_served"},
        401: {"unauthorized"},
        404: {"no_decoder", "no_head", "no_index", "not_found", "model_not_found"},
        405: {"method_not_allowed"},
        406: {"not_acceptable"},
        408: {"request_stalled"},
        413: {"body_too_large", "too_many_pixels", "too_many_images"},
        414: {"uri_too_long"},
        415: {"unsupported_media_type"},
        422: {"invalid_parameter"},
        429: {"queue_full", "memory_full", "key_busy", "key_rate_exceeded"},
        431: {"headers_too_large"},
        499: {"client_gone"},
        500: {"inference_failed", "internal_error", "search_failed"},
        501: {"unsupported_transfer_coding"},
        503: {"not_ready", "draining", "engine_lost", "too_many_connections", "out_of_memory"},
        504: {"deadline_passed"},
    }


def test_codes_are_unique() -> None:
    assert len({kind.code for kind in CLASSES}) == len(CLASSES)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_shape_of_an_error(kind: type[ServiceError]) -> None:
    error = kind("what happened", image=3)
    assert orjson.loads(orjson.dumps(error.body())) == {
        "error": {"code": kind.code, "message": "what happened", "details": {"image": 3}}
    }
    assert str(error) == "what happened"


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_headers_say_when_to_come_back_and_who_may(kind: type[ServiceError]) -> None:
    headers = kind("x").headers
    overloaded = kind.status in (http.HTTPStatus.TOO_MANY_REQUESTS, http.HTTPStatus.SERVICE_UNAVAILABLE)
    assert ("retry-after" in headers) == overloaded
    assert not overloaded or int(headers["retry-after"]) > 0
    assert ("www-authenticate" in headers) == (kind.status == 401)
    closing = {"draining", "engine_lost", "too_many_connections", "request_stalled", "malformed_request"}
    closing |= {"headers_too_large", "uri_too_long", "unsupported_transfer_coding"}
    assert (headers.get("connection") == "close") == (kind.code in closing)


def test_a_compressed_body_is_told_what_is_served() -> None:
    assert "accept-encoding" not in errors.UnsupportedType("a PDF", supported=["JPEG"]).headers
    assert errors.UnsupportedType("gzip", encoding="gzip").headers == {"accept-encoding": "identity"}


def test_a_key_that_was_too_fast_is_told_how_long_to_wait() -> None:
    assert errors.KeyRateExceeded("x", retry_after_s=17).headers["retry-after"] == "17"
