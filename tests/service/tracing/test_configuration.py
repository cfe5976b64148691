"""OpenTelemetry's variables turn traces on, and wrong ones stop the start."""

import subprocess
import sys
from typing import Any

import pytest

from service.settings import InvalidSettings
from service.tracing import configuration
from service.tracing.configuration import load_tracer

ENDPOINT = "http://127.0.0.1:9"
ON = {"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT}
NOTHING_IS_IMPORTED = """
import sys
from service.tracing.configuration import load_tracer
import service.workers.engine_process
assert load_tracer({}) is None
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": ""},
        {"OTEL_TRACES_EXPORTER": "none", **ON},
        {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp", **ON},
        {"OTEL_SDK_DISABLED": "TRUE", **ON},
        {"OTEL_SERVICE_NAME": "vectors", "OTEL_TRACES_SAMPLER": "always_on"},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": ENDPOINT},
    ],
)
def test_nothing_is_traced_unless_a_variable_asks_for_it(environment: dict[str, str]) -> None:
    assert load_tracer(environment) is None


@pytest.mark.live
def test_without_traces_opentelemetry_is_not_even_imported() -> None:
    """In the engine process; in the others FastAPI itself imports its API."""
    done = subprocess.run([sys.executable, "-c", NOTHING_IS_IMPORTED], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def exporters_of(tracer: Any) -> list[str]:
    processors = tracer._provider._active_span_processor._span_processors
    return [type(processor.span_exporter).__module__ for processor in processors]


@pytest.mark.parametrize(
    ("environment", "exporters"),
    [
        (ON, ["opentelemetry.exporter.otlp.proto.http.trace_exporter"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": ENDPOINT}, ["opentelemetry.exporter.otlp.proto.http.trace_exporter"]),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["opentelemetry.exporter.otlp.proto.http.trace_exporter"]),
        ({"OTEL_TRACES_EXPORTER": "console", **ON}, ["opentelemetry.sdk.trace.export"]),
        (
            {"OTEL_TRACES_EXPORTER": "console, otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            ["opentelemetry.sdk.trace.export", "opentelemetry.exporter.otlp.proto.http.trace_exporter"],
        ),
    ],
)
def test_the_exporters_that_are_named(environment: dict[str, str], exporters: list[str]) -> None:
    tracer = load_tracer(environment)
    assert tracer is not None
    assert exporters_of(tracer) == exporters
    tracer.close()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "OTEL_TRACES_EXPORTER: no installed package has the exporter jaeger"),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", **ON},
            "OTEL_TRACES_EXPORTER: no installed package has the exporter otlp_proto_grpc",
        ),
        (
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/xml", **ON},
            "OTEL_EXPORTER_OTLP_PROTOCOL: http/xml is neither http/protobuf nor grpc",
        ),
    ],
)
def test_an_exporter_that_is_not_there_stops_the_start(environment: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        load_tracer(environment)


def test_the_missing_extra_stops_the_start_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(InvalidSettings, match=r"OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, .* the extra otel"):
        load_tracer(ON)


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "mae-serve"),
        ({"OTEL_SERVICE_NAME": "vectors"}, "vectors"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=images,deployment.environment.name=test"}, "images"),
    ],
)
def test_the_service_has_a_name(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    tracer: Any = load_tracer(ON)
    attributes = tracer._provider.resource.attributes
    tracer.close()
    assert attributes["service.name"] == name
    assert attributes["service.version"] == configuration.version("mae-serve")
