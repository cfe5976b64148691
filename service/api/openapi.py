"""The API's description where FastAPI's own is not enough: keys, one answer of errors per format, pictures first."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from service.api.error_schemas import ERROR_ANSWERS, ErrorDetail, OpenAIErrorDetail
from service.api.responses import PNG

SECURITY_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "one of API_KEYS"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "one of API_KEYS"},
}
OF_FASTAPI = "Validation Error"
"""The description of the response that FastAPI adds to a route with parameters."""


class DescribedAPI:
    """Makes the description once, and completes it.

    Attributes:
        needs_key: whether API_KEYS is set; without it the keys are described as optional.
        root_path: the path prefix of the service behind a proxy; None if there is none.
    """

    def __init__(self, app: FastAPI, needs_key: bool, root_path: str | None = None) -> None:
        """Takes the place of the app's own `openapi`."""
        self.needs_key = needs_key
        self.root_path = root_path
        self._describe = app.openapi
        self._description: dict[str, Any] | None = None

    def __call__(self) -> dict[str, Any]:
        """The description."""
        if self._description is None:
            self._description = self._complete(self._describe())
        return self._description

    def _complete(self, description: dict[str, Any]) -> dict[str, Any]:
        if self.root_path:
            description["servers"] = [{"url": self.root_path}]
        components = description.setdefault("components", {})
        components["securitySchemes"] = SECURITY_SCHEMES
        bodies: dict[str, type[BaseModel]] = dict(ERROR_ANSWERS.values())
        components["responses"] = {name: _error_answer(body) for name, body in bodies.items()}
        models: tuple[type[BaseModel], ...] = (*bodies.values(), ErrorDetail, OpenAIErrorDetail)
        for model in models:
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schema.pop("$defs", None)
            components.setdefault("schemas", {})[model.__name__] = schema
        for methods in description["paths"].values():
            for operation in methods.values():
                responses = operation["responses"]
                if responses.get("422", {}).get("description") == OF_FASTAPI:
                    del responses["422"]  # no request is answered so: paths hold texts, and every text is valid
                if "401" in responses:
                    operation["security"] = [{name: []} for name in SECURITY_SCHEMES]
                    operation["security"] += [] if self.needs_key else [{}]
                content = responses.get("200", {}).get("content", {})
                if PNG in content:  # tools that send one `Accept` take the first
                    responses["200"]["content"] = {PNG: content.pop(PNG), **content}
        return description


def _error_answer(body: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{body.__name__}"}
    return {
        "description": "An error: a code for programs, a sentence for people.",
        "content": {"application/json": {"schema": schema}},
    }
