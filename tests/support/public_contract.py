"""The public contract, one item per line, computed from the code.

The module run as a script (COMMAND) writes it to tests/data/public_contract.txt, and a test compares the two.
"""

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import typer
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import Counter, Gauge, Histogram
from pydantic.fields import FieldInfo

from model.engines.base import ServedModel
from service.api.app import create_app
from service.cli.main import app as command_line
from service.errors import ServiceError
from service.gpu_metrics import GPUCollector
from service.metrics import Metrics
from service.settings import PREFIX, Settings
from tests.support.command_line import all_commands
from tests.support.engines import FakeEngine

PINNED = Path(__file__).parents[1] / "data" / "public_contract.txt"
COMMAND = ".venv/bin/python -m tests.support.public_contract"
METHODS = {"get", "post", "put", "patch", "delete"}


def public_contract() -> str:
    """All sections; inside each the lines are sorted, since order is no part of the contract."""
    with patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            del os.environ[name]
        api = create_app(Settings(), lambda settings, progress: ServedModel(FakeEngine()))
    answers = ask(api)
    sections = {
        "settings": settings(),
        "commands": commands(),
        "routes": routes(api),
        "keys of JSON answers": answer_keys(api.openapi(), answers),
        "errors": errors(answers),
        "metrics": metrics(),
    }
    return "\n".join("\n".join([f"[{title}]", *sorted(set(lines)), ""]) for title, lines in sections.items())


def settings() -> Iterator[str]:
    """Names and defaults of the settings."""
    for name, field in Settings.model_fields.items():
        yield f"{PREFIX}{name.upper()} = {default_of(field)}"


def default_of(field: FieldInfo) -> str:
    return "(depends on the machine)" if field.default_factory else repr(field.default)


def commands() -> Iterator[str]:
    """Arguments and flags with their kinds and defaults, and the exit codes that the help names."""
    root: Any = typer.main.get_command(command_line)
    for words, command in [("mae", root), *((f"mae {name}", command) for name, command in all_commands().items())]:
        for parameter in command.params:
            names = ", ".join([*parameter.opts, *parameter.secondary_opts])
            if parameter.param_type_name == "argument":
                names = f"{parameter.metavar or parameter.name.upper()}{'…' if parameter.nargs != 1 else ''}"
            kind = f" {parameter.metavar}" if parameter.param_type_name == "option" and parameter.metavar else ""
            required = " (required)" if parameter.required else ""
            shown = re.search(r"\[default: (.*)\]", getattr(parameter, "help", None) or "")
            default = shown[1] if shown else parameter.default if parameter.default not in (None, False, ()) else None
            yield f"{words} {names}{kind}{required}{'' if default is None else f' = {default}'}"
        if codes := re.search(r"Exit code: (.*)", (command.help or "").replace("\n", " ")):
            yield f"{words} exits with {', '.join(re.findall(r'[0-9]+', codes[1]))}"


def routes(api: FastAPI) -> Iterator[str]:
    """Parameters, bodies, statuses and media types, as OpenAPI describes them."""
    for method, path, operation in operations(api.openapi()):
        for parameter in operation.get("parameters", ()):
            kinds = {"query": "?", "header": "header ", "path": "path "}
            schema = parameter["schema"]
            default = f" = {schema['default']!r}" if "default" in schema else ""
            yield f"{method} {path} {kinds[parameter['in']]}{parameter['name']} {kind_of(schema)}{default}"
        for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
            keys = sorted(body["schema"].get("properties", ())) if media_type == "application/json" else ()
            yield from (f"{method} {path} takes {media_type} with {key}" for key in keys)
            yield f"{method} {path} takes {media_type}"
        for status, answer in operation["responses"].items():
            content = resolve(answer, api.openapi()).get("content", ())
            yield f"{method} {path} answers {status} {', '.join(content)}".rstrip()


def resolve(part: Mapping[str, Any], openapi: Mapping[str, Any]) -> Mapping[str, Any]:
    """A part of OpenAPI, or what it refers to."""
    if "$ref" not in part:
        return part
    for name in part["$ref"].split("/")[1:]:
        openapi = openapi[name]
    return openapi


def kind_of(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few characters."""
    if "anyOf" in schema:
        return "|".join(map(kind_of, schema["anyOf"]))
    if "enum" in schema:
        return "|".join(map(str, schema["enum"]))
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign}{schema[word]:g}" for word, sign in bounds.items() if word in schema]
    return " ".join([str(schema.get("type", "any")), *limits])


def operations(openapi: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            if method in METHODS:
                yield method.upper(), path, operation


def ask(api: FastAPI) -> dict[str, Any]:
    """Answers of a running app on the paths that OpenAPI does not describe in full, by method and path."""
    with TestClient(api) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        paths = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/info", "/no-such-route", "/embed")
        return {f"GET {path}": client.get(path) for path in paths}


def answer_keys(openapi: Mapping[str, Any], answers: Mapping[str, Any]) -> Iterator[str]:
    """The keys of every JSON answer with status 200; `.` leads into an object, `[]` into a list."""
    for method, path, operation in operations(openapi):
        content = operation["responses"].get("200", {}).get("content", {})
        for key in schema_keys(content.get("application/json", {}).get("schema", {}), openapi):
            yield f"{method} {path}: {key}"
    for name, answer in answers.items():
        if answer.status_code == 200:
            yield from (f"{name}: {key}" for key in value_keys(answer.json()))
    for where, body in [
        ("every error", "ErrorAnswer"),
        ("every error under /v1, /embeddings, /models", "OpenAIErrorAnswer"),
        ("every error of /v2/embed", "CohereErrorAnswer"),
        ("every error elsewhere under /v2", "OpenInferenceErrorAnswer"),
    ]:
        schema = {"$ref": f"#/components/schemas/{body}"}
        yield from (f"{where}: {key}" for key in schema_keys(schema, openapi))


def schema_keys(schema: Mapping[str, Any], openapi: Mapping[str, Any], before: str = "") -> Iterator[str]:
    if "$ref" in schema:
        target = schema["$ref"].rpartition("/")[2]
        yield from schema_keys(openapi["components"]["schemas"][target], openapi, before)
    for alternative in schema.get("anyOf", ()):
        yield from schema_keys(alternative, openapi, before)
    if isinstance(schema.get("items"), Mapping):
        yield from schema_keys(schema["items"], openapi, f"{before}[]")
    for name, value in schema.get("properties", {}).items():
        key = f"{before}.{name}".removeprefix(".")
        yield key
        yield from schema_keys(value, openapi, key)


def value_keys(value: Any, before: str = "") -> Iterator[str]:
    """The keys of a JSON value, without the names of libraries, which are not ours."""
    if isinstance(value, Mapping) and before != "engine.versions":
        for name, inner in value.items():
            key = f"{before}.{name}".removeprefix(".")
            yield key
            yield from value_keys(inner, key)


def errors(answers: Mapping[str, Any]) -> Iterator[str]:
    """Codes with their statuses, and the headers that tell a client how to go on."""
    ours = [error for error in classes(ServiceError) if error.__module__.startswith("service.")]  # not a test's own
    for error in ours:
        headers = {name: value for name, value in error("").headers.items() if name in ("retry-after", "connection")}
        yield " ".join([error.code, str(error.status), *(f"{name}: {value}" for name, value in headers.items())])
    for answer in answers.values():
        if answer.status_code >= 400:
            yield f"{answer.json()['error']['code']} {answer.status_code}"


def classes(base: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield base
    for subclass in base.__subclasses__():
        yield from classes(subclass)


def metrics() -> Iterator[str]:
    """Names and labels of our own metrics; those of a GPU are read from a driver that has one."""
    for metric in vars(Metrics()).values():
        if isinstance(metric, (Counter, Gauge, Histogram)):
            (family,) = metric.describe()
            yield metric_line(family.name, family.type, metric._labelnames)
    failure = type("NVMLError", (Exception,), {})
    driver = MagicMock(NVMLError=failure, NVMLError_NotSupported=failure)
    driver.nvmlDeviceGetCount.return_value = 1
    with patch.dict(sys.modules, pynvml=driver):
        for family in GPUCollector({"CUDA_VISIBLE_DEVICES": "0"}).collect():
            yield metric_line(family.name, family.type, family.samples[0].labels)


def metric_line(name: str, kind: str, labels: Iterable[str]) -> str:
    return f"{name}{'_total' if kind == 'counter' else ''} {kind}" + (f" by {', '.join(labels)}" if labels else "")


if __name__ == "__main__":
    PINNED.write_text(public_contract())
    print(f"written: {PINNED}")
