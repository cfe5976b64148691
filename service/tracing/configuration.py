"""Whether requests are traced, and where their spans go: OpenTelemetry's own variables, OTEL_…, say so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points, version
from typing import TYPE_CHECKING, Any

from service.settings import InvalidSettings

if TYPE_CHECKING:
    from service.tracing.spans import Tracer

EXPORTERS = "OTEL_TRACES_EXPORTER"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
DEFAULT_PROTOCOL = "http/protobuf"
NAME = "mae-serve"
"""The service's name where neither OTEL_SERVICE_NAME nor OTEL_RESOURCE_ATTRIBUTES gives another."""


def load_tracer(environment: Mapping[str, str] = os.environ) -> Tracer | None:
    """The tracer that the environment asks for; None, and OpenTelemetry is not imported, where it asks for none.

    OTEL_TRACES_EXPORTER or an OTLP endpoint asks for one; `OTEL_TRACES_EXPORTER=none` and `OTEL_SDK_DISABLED=true` do
    not. The SDK reads all other variables itself: sampler, limits, batches, headers, timeouts, resource.

    Raises:
        InvalidSettings: the extra `otel` is not installed, an exporter is not, or the SDK refuses a value.
    """
    names = _exporter_names(environment)
    if not names:
        return None
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from service.tracing.spans import Tracer
    except ImportError as error:
        variable = next(name for name in (EXPORTERS, *ENDPOINTS) if environment.get(name))
        raise InvalidSettings(
            f"{variable} asks for traces, which need the extra otel ({error}):"
            " pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, or set OTEL_SDK_DISABLED=true"
        ) from error
    exporters = [_find_exporter(name, environment) for name in names]
    try:
        resource = Resource.create({SERVICE_VERSION: version(NAME)})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: NAME}))
        return Tracer([BatchSpanProcessor(exporter.load()()) for exporter in exporters], resource)
    except ValueError as error:
        raise InvalidSettings(f"a variable OTEL_… has a value that OpenTelemetry refuses: {error}") from error


def _exporter_names(environment: Mapping[str, str]) -> list[str]:
    """The names of the exporters that the environment asks for."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return []
    default = "otlp" if any(environment.get(name) for name in ENDPOINTS) else "none"
    names = [name.strip() for name in (environment.get(EXPORTERS) or default).split(",")]
    return [name for name in names if name and name != "none"]


def _find_exporter(name: str, environment: Mapping[str, str]) -> EntryPoint:
    """The entry point of an exporter.

    Raises:
        InvalidSettings: no installed package has it.
    """
    entry: Any = name
    if name == "otlp":
        protocol = next((environment[variable] for variable in PROTOCOLS if environment.get(variable)), "").strip()
        entry = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}.get(protocol or DEFAULT_PROTOCOL)
        if entry is None:
            raise InvalidSettings(f"{PROTOCOLS[1]}: {protocol} is neither {DEFAULT_PROTOCOL} nor grpc")
    for found in entry_points(group="opentelemetry_traces_exporter", name=entry):
        return found
    raise InvalidSettings(f"{EXPORTERS}: no installed package has the exporter {entry}")
