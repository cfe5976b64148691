"""The spans of requests through the app, as OpenTelemetry's own exporter in memory receives them."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from model.engines.base import ServedModel
from service.api.app import create_app
from service.service import LocalService
from service.settings import Settings
from service.tracing import spans as spans_module
from service.tracing.spans import Tracer
from tests.support.clients import grey
from tests.support.engines import FakeEngine
from tests.support.queueing import Gate

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"


class Traced:
    """A service that records its spans in memory."""

    def __init__(self, client: TestClient, memory: InMemorySpanExporter) -> None:
        self.client = client
        self._memory = memory

    def post(self, path: str = "/embed", images: int = 1, **request: Any) -> Any:
        files = [("image", ("image", grey(number))) for number in range(images)]
        return self.client.post(path, files=files, **request)

    def pass_time(self, seconds: float) -> None:
        """Moves the clock by which the event loop calls what waits."""

        async def move() -> None:
            loop = asyncio.get_running_loop()
            now = loop.time
            loop.time = lambda: now() + seconds  # type: ignore[method-assign]

        assert self.client.portal is not None
        self.client.portal.call(move)

    def spans(self, name: str = "") -> list[ReadableSpan]:
        return [span for span in self._memory.get_finished_spans() if name in ("", span.name)]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end


@contextmanager
def serving(engine: FakeEngine | None = None, **settings: Any) -> Iterator[Traced]:
    """The spans are complete when the context is left: the lanes have ended then."""
    memory = InMemorySpanExporter()
    tracer = Tracer([SimpleSpanProcessor(memory)])
    made = LocalService(Settings(**settings), lambda settings, progress: ServedModel(engine or FakeEngine()), tracer)
    with TestClient(create_app(service=made), base_url="http://embeddings.test:8080", client=("10.0.0.7", 5)) as client:
        wait_for(lambda: client.get("/readyz").status_code == 200)
        yield Traced(client, memory)


def parent_id(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def linked(span: ReadableSpan) -> list[Any]:
    return [link.context for link in span.links]


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None and span.end_time is not None
    return span.start_time, span.end_time


@pytest.mark.parametrize("path", ["/embed", "/reconstruct"])
def test_a_request_has_a_span_for_each_stage(path: str) -> None:
    with serving() as traced:
        assert traced.post(path).status_code == 200
    [server] = traced.spans(f"POST {path}")
    [batch] = traced.spans("batch")
    stages = ["read", "decode", "queue", "inference"] + (["render"] if path == "/reconstruct" else [])
    assert Counter(span.name for span in traced.spans()) == Counter([*stages, server.name, "batch"])
    assert parent_id(server) is None and parent_id(batch) is None
    ordered = [span for stage in stages for span in traced.spans(stage)]
    for span in ordered:
        assert parent_id(span) == server.context.span_id and span.context.trace_id == server.context.trace_id
        assert span.kind is SpanKind.INTERNAL and span.status.status_code is StatusCode.UNSET
    moments = [moment for span in ordered for moment in times(span)]
    slack = 2_000_000  # nanoseconds: the clocks of two stages are read one after the other
    assert all(after > before - slack for before, after in pairwise(moments))
    assert times(server)[0] <= moments[0] + slack and moments[-1] <= times(server)[1] + slack
    [inference], operation = traced.spans("inference"), path[1:]
    assert linked(inference) == [batch.context] and linked(batch) == [server.context]
    assert batch.context.trace_id != server.context.trace_id
    assert attributes(batch) == {"mae.operation": operation, "mae.images": 1, "mae.lane": 0}
    assert attributes(inference) == {"mae.operation": operation, "mae.images": 1, "mae.batch.images": 1}


def test_the_server_span_follows_the_semantic_conventions_for_http() -> None:
    with serving() as traced:
        answer = traced.post("/embed?pool=cls", headers={"user-agent": "curl/8.5.0", "x-request-id": "r1"})
    [server] = traced.spans("POST /embed")
    assert server.kind is SpanKind.SERVER
    expected = {
        "http.request.method": "POST",
        "http.route": "/embed",
        "http.response.status_code": 200,
        "url.path": "/embed",
        "url.query": "pool=cls",
        "url.scheme": "http",
        "server.address": "embeddings.test",
        "server.port": 8080,
        "client.address": "10.0.0.7",
        "network.protocol.version": "1.1",
        "user_agent.original": "curl/8.5.0",
        "mae.request_id": "r1",
        "mae.images": 1,
    }
    assert attributes(server) == expected
    version, trace_id, span_id, flags = answer.headers["traceparent"].split("-")
    assert (version, int(trace_id, 16), int(span_id, 16)) == ("00", server.context.trace_id, server.context.span_id)
    assert int(flags, 16) & 1, "sampled"


def test_a_method_that_nobody_knows_is_not_in_the_name() -> None:
    with serving() as traced:
        assert traced.client.request("BREW", "/embed").status_code == 405
    [server] = traced.spans()
    assert server.name == "HTTP /embed"
    assert attributes(server)["http.request.method"] == "_OTHER"
    assert attributes(server)["http.request.method_original"] == "BREW"


def test_a_request_continues_the_trace_of_its_caller() -> None:
    with serving() as traced:
        answer = traced.post(headers={"traceparent": SAMPLED, "tracestate": "vendor=1"})
    [server] = traced.spans("POST /embed")
    assert f"{server.context.trace_id:032x}" == TRACE and f"{parent_id(server):016x}" == CALLER
    assert server.parent is not None and server.parent.is_remote
    assert server.context.trace_state == {"vendor": "1"}
    assert answer.headers["traceparent"] == f"00-{TRACE}-{server.context.span_id:016x}-01"


def test_the_log_names_the_span_of_a_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "service.access")
    with serving() as traced:
        answer = traced.post(headers={"traceparent": SAMPLED})
    [logged] = [record for record in caplog.records if record.name == "service.access"]
    assert logged.fields["traceparent"] == answer.headers["traceparent"]  # type: ignore[attr-defined]


def test_a_caller_that_does_not_sample_gets_no_spans_but_its_trace_back() -> None:
    with serving() as traced:
        answer = traced.post(headers={"traceparent": UNSAMPLED})
    assert traced.spans() == []
    assert answer.headers["traceparent"].startswith(f"00-{TRACE}-") and answer.headers["traceparent"].endswith("-00")
    assert CALLER not in answer.headers["traceparent"]


def test_what_is_no_traceparent_begins_a_new_trace() -> None:
    with serving() as traced:
        answer = traced.post(headers={"traceparent": f"{SAMPLED}\tforged"})
    [server] = traced.spans("POST /embed")
    assert parent_id(server) is None
    assert answer.headers["traceparent"].startswith(f"00-{server.context.trace_id:032x}-")


def test_the_sampler_decides_once_per_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler that looks at parents only would lose the batch, which has none."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    with serving() as traced:
        traced.post()
        traced.post(headers={"traceparent": SAMPLED})
    assert len(traced.spans()) == 6 and len(traced.spans("batch")) == 1
    assert {f"{span.context.trace_id:032x}" for span in traced.spans() if span.name != "batch"} == {TRACE}


def test_a_batch_has_links_to_all_its_requests() -> None:
    gate = Gate()
    with serving(FakeEngine(8, before=gate)) as traced:
        # The first batch holds up the lane, so that the other requests share the second.
        threads = [threading.Thread(target=traced.post, kwargs={"images": images}) for images in (1, 2, 1)]
        threads[0].start()
        assert gate.reached.wait(60)
        for thread in threads[1:]:
            thread.start()
        wait_for(lambda: "mae_queue_images 3.0" in traced.client.get("/metrics").text)
        gate.opened.set()
        for thread in threads:
            thread.join()
    servers = {attributes(span)["mae.images"]: span for span in traced.spans("POST /embed")}
    shared = next(span for span in traced.spans("batch") if attributes(span)["mae.images"] == 3)
    assert len(traced.spans("batch")) == len(shared.links) == 2
    assert servers[2].context in linked(shared)
    [inference] = [span for span in traced.spans("inference") if attributes(span)["mae.images"] == 2]
    assert attributes(inference)["mae.batch.images"] == 3 and linked(inference) == [shared.context]
    assert parent_id(inference) == servers[2].context.span_id


def test_images_of_one_request_in_several_batches() -> None:
    with serving(FakeEngine(2)) as traced:
        traced.post(images=5)
    [server] = traced.spans("POST /embed")
    assert attributes(server)["mae.images"] == 5
    assert sorted(attributes(span)["mae.image"] for span in traced.spans("decode")) == [0, 1, 2, 3, 4]
    for name in ("queue", "inference", "batch"):
        assert sum(attributes(span)["mae.images"] for span in traced.spans(name)) == 5, name
    assert {context.span_id for span in traced.spans("batch") for context in linked(span)} == {server.context.span_id}


def test_an_error_of_the_client_is_none_of_the_server() -> None:
    with serving() as traced:
        traced.client.post("/embed", content=b"no image")
    [server], [decode] = traced.spans("POST /embed"), traced.spans("decode")
    assert server.status.status_code is StatusCode.UNSET
    assert attributes(server)["http.response.status_code"] == 400 and "error.type" not in attributes(server)
    assert attributes(server)["mae.error.code"] == "undecodable_image"
    assert decode.status.status_code is StatusCode.ERROR
    assert attributes(decode) == {"mae.image": 0, "error.type": "undecodable_image"}
    assert not traced.spans("queue") and not traced.spans("batch")


def test_an_image_on_which_the_engine_fails() -> None:
    with serving(FakeEngine(not_a_number=7)) as traced:
        assert traced.client.post("/embed", content=grey(7)).status_code == 500
    for span in [*traced.spans("POST /embed"), *traced.spans("batch"), *traced.spans("inference")]:
        assert span.status.status_code is StatusCode.ERROR
        assert attributes(span)["error.type"] == "inference_failed"
    assert len(traced.spans()) == 6


def test_a_request_that_waits_in_vain() -> None:
    gate = Gate()
    with serving(FakeEngine(1, before=gate), request_timeout_s=600) as traced, ThreadPoolExecutor() as pool:
        first = pool.submit(traced.post)
        assert gate.reached.wait(60)
        late = pool.submit(traced.client.post, "/embed", content=grey(2), headers={"traceparent": SAMPLED})
        wait_for(lambda: "mae_queue_images 1.0" in traced.client.get("/metrics").text)
        traced.pass_time(600)
        assert (first.result().status_code, late.result().status_code) == (504, 504)
        gate.opened.set()
    server = next(span for span in traced.spans("POST /embed") if span.parent is not None)
    assert server.status.status_code is StatusCode.ERROR and attributes(server)["error.type"] == "deadline_passed"
    own = {span.name: span for span in traced.spans() if parent_id(span) == server.context.span_id}
    assert set(own) == {"read", "decode", "queue"}
    assert times(own["queue"])[1] > times(own["queue"])[0]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/info", "/docs", "/nowhere"])
def test_other_routes_have_no_spans(path: str) -> None:
    with serving() as traced:
        assert traced.client.get(path, headers={"traceparent": SAMPLED}).headers["traceparent"] == SAMPLED
    assert traced.spans() == []


class HangingProcessor(SpanProcessor):
    """A processor whose collector does not answer."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def shutdown(self) -> None:
        assert self.released.wait(60)


def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spans_module, "CLOSE_S", 0.02)
    processor = HangingProcessor()
    Tracer([processor]).close()
    assert "the last spans were not sent within 0.02 s" in caplog.text
    processor.released.set()
