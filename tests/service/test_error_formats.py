"""Errors as the clients of each protocol read them."""

from __future__ import annotations

import inspect

import pytest

from service import errors
from service.error_formats import error_body, error_headers
from service.errors import (
    DeadlinePassed,
    Draining,
    InferenceFailed,
    InvalidParameter,
    QueueFull,
    RequestStalled,
    ServiceError,
    Unauthorized,
)

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ServiceError)]
OPENAI = ("/v1/embeddings", "/embeddings", "/v1/models", "/models", "/v1/models/org/name", "/models/x", "/v1", "/v1/no")
OPEN_INFERENCE = (
    "/v2",
    "/v2/models/embed/infer",
    "/v2/models",
    "/v2/repository/index",
    "/v2/no",
    "/v2/embed/x",
    "/v2/embeddings",
)
OWN = ("/embed", "/info", "/no", "/", "", "/v1x", "/modelsx", "/v20/models", "/embeddings_image", "/x/v1/embeddings")


@pytest.mark.parametrize("path", OWN)
def test_the_services_own_format(path: str) -> None:
    error = InvalidParameter("keep: too large", parameter="keep")
    assert error_body(error, path) == {
        "error": {"code": "invalid_parameter", "message": "keep: too large", "details": {"parameter": "keep"}}
    }
    assert error_headers(error, path) == {}


@pytest.mark.parametrize("path", OPENAI)
def test_openais_format(path: str) -> None:
    assert error_body(InvalidParameter("keep: too large", parameter="keep"), path) == {
        "error": {
            "message": "keep: too large",
            "type": "invalid_request_error",
            "param": "keep",
            "code": "invalid_parameter",
        }
    }
    assert error_body(QueueFull("full", limit=3), path) == {
        "error": {"message": "full", "type": "rate_limit_error", "param": None, "code": "queue_full"}
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Unauthorized("x"), "authentication_error"),
        (Draining("x"), "server_error"),
        (InferenceFailed("x"), "server_error"),
        (errors.NotFound("x"), "invalid_request_error"),
    ],
)
def test_openais_types(error: ServiceError, kind: str) -> None:
    assert error_body(error, "/v1/embeddings")["error"]["type"] == kind


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_openais_clients_try_again_only_where_it_can_help(kind: type[ServiceError]) -> None:
    """They do so by themselves for these statuses, unless the header forbids it."""
    headers = error_headers(kind("x"), "/v1/embeddings")
    tried_again = kind.status in (408, 409, 429) or kind.status >= 500
    can_help = kind.status in (408, 429, 503)
    assert (tried_again and headers.get("x-should-retry") != "false") == can_help
    assert {name: value for name, value in headers.items() if name != "x-should-retry"} == kind("x").headers
    assert error_headers(kind("x"), "/embed") == kind("x").headers


def test_coheres_format() -> None:
    assert error_body(RequestStalled("no byte for 10 s"), "/v2/embed") == {"message": "no byte for 10 s"}
    assert error_headers(InferenceFailed("x"), "/v2/embed") == {}


@pytest.mark.parametrize("path", OPEN_INFERENCE)
def test_the_open_inference_protocols_format(path: str) -> None:
    assert error_body(QueueFull("full", limit=3), path) == {"error": "full"}


def test_a_deadline_has_the_words_that_pytriton_looks_for() -> None:
    assert error_body(DeadlinePassed("the answer was not ready in time"), "/v2/models/embed/infer") == {
        "error": "Deadline Exceeded: the answer was not ready in time"
    }
