"""The API's description, as tools read it."""

from __future__ import annotations

from typing import Any

import pytest

from service.api.app import create_app
from service.error_formats import error_format
from service.settings import Settings
from tests.support.public_contract import operations

DESCRIPTION = create_app(Settings()).openapi()
OPERATIONS = {f"{method} {path}": operation for method, path, operation in operations(DESCRIPTION)}


def references(part: Any) -> list[str]:
    """All `$ref` inside a part of the description."""
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [name for value in part.values() for name in references(value)]
    return [name for value in part for name in references(value)] if isinstance(part, list) else []


def test_every_reference_leads_to_something() -> None:
    names = set(references(DESCRIPTION))
    assert len(names) > 10
    for name in names:
        part = DESCRIPTION
        for step in name.removeprefix("#/").split("/"):
            part = part[step]


@pytest.mark.parametrize(
    "name", ["POST /embed", "POST /classify", "POST /reconstruct", "POST /anomaly", "POST /search", "GET /info"]
)
def test_a_route_that_needs_a_key_names_both_ways_to_send_it(name: str) -> None:
    schemes = DESCRIPTION["components"]["securitySchemes"]
    assert {(scheme["type"], scheme.get("scheme"), scheme.get("name")) for scheme in schemes.values()} == {
        ("http", "bearer", None),
        ("apiKey", None, "X-API-Key"),
    }
    either = [{scheme: []} for scheme in schemes]
    assert OPERATIONS[name]["security"] == [*either, {}]  # without API_KEYS a key is optional
    with_keys = create_app(Settings(api_keys=("k",))).openapi()
    method, path = name.split()
    assert with_keys["paths"][path][method.lower()]["security"] == either


def test_probes_and_metrics_need_no_key() -> None:
    for name in ("GET /livez", "GET /readyz", "GET /metrics"):
        assert "security" not in OPERATIONS[name]


PROTOCOLS = {
    "own": ("Error", "ErrorAnswer"),
    "openai": ("OpenAIError", "OpenAIErrorAnswer"),
    "cohere": ("CohereError", "CohereErrorAnswer"),
    "open-inference": ("OpenInferenceError", "OpenInferenceErrorAnswer"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_errors_of_a_protocol_share_one_answer(protocol: str) -> None:
    answer, body = PROTOCOLS[protocol]
    answers = {
        answer.get("$ref")
        for name, operation in OPERATIONS.items()
        if name not in ("GET /livez", "GET /readyz", "GET /ping")
        if error_format(name.split()[1]) == protocol
        for status, answer in operation["responses"].items()
        if status != "200"
    }
    assert answers == {f"#/components/responses/{answer}"}
    [content] = DESCRIPTION["components"]["responses"][answer]["content"].values()
    assert content["schema"] == {"$ref": f"#/components/schemas/{body}"}


def test_a_reconstruction_is_a_picture_first() -> None:
    assert next(iter(OPERATIONS["POST /reconstruct"]["responses"]["200"]["content"])) == "image/png"


def test_summaries_and_answers_are_sentences() -> None:
    summaries = [operation["summary"] for operation in OPERATIONS.values()]
    assert len(set(summaries)) == len(OPERATIONS) == 24
    assert all(len(summary.split()) >= 4 for summary in summaries)
    for operation in OPERATIONS.values():
        assert operation["responses"]["200"]["description"] != "Successful Response"
