"""Traces of real servers, received over OTLP as a collector would."""

import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.live.conftest import Start
from tests.support.clients import grey

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(ThreadingHTTPServer):
    """Receives OTLP over HTTP, in protobuf, on a free port."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.spans: list[tuple[dict[str, str], Any]] = []
        """Each span with the attributes of its resource."""

    def named(self, name: str) -> list[Any]:
        return [span for _, span in self.spans if span.name == name]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        known = self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
        if known:
            for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = {pair.key: pair.value.string_value for pair in sent.resource.attributes}
                self.server.spans += [(resource, span) for scope in sent.scope_spans for span in scope.spans]
        self.send_response(200 if known else 404)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


@pytest.mark.parametrize("workers", [0, 1])
def test_one_trace_over_all_processes(start_server: Start, collector: Collector, workers: int) -> None:
    """The spans are sent when the server ends, so their number is known."""
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_SERVICE_NAME": "vectors"}
    server = start_server(variables | {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}, http_workers=workers, max_batch=2)
    answer = httpx.post(
        server.url + "/reconstruct?seed=1",
        files=[("image", ("image", grey(number))) for number in range(2)],
        headers={"traceparent": f"00-{TRACE}-{CALLER}-01"},
        timeout=60,
    )
    assert answer.status_code == 200
    assert server.terminate() == 0
    assert {resource["service.name"] for resource, _ in collector.spans} == {"vectors"}
    [request] = collector.named("POST /reconstruct")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, CALLER)
    assert answer.headers["traceparent"] == f"00-{TRACE}-{request.span_id.hex()}-01"
    batches = collector.named("batch")
    own = [span for _, span in collector.spans if span.trace_id == request.trace_id and span.name != request.name]
    assert Counter(span.name for span in own) == Counter(
        {"read": 1, "decode": 2, "render": 1, "queue": len(batches), "inference": len(batches)}
    )
    assert {span.parent_span_id for span in own} == {request.span_id}
    assert len(collector.spans) == len(own) + len(batches) + 1
    for batch in batches:
        assert [(link.trace_id, link.span_id) for link in batch.links] == [(request.trace_id, request.span_id)]
    waits = {link.span_id for span in collector.named("inference") for link in span.links}
    assert waits == {batch.span_id for batch in batches}
