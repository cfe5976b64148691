"""The middleware around every request, called in plain ASGI."""

import asyncio
import logging
import re
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api.body_limit import BodyLimitMiddleware
from service.api.middleware import ObservabilityMiddleware, RequestLineMiddleware, record_of
from service.errors import QueueFull
from service.service import Service
from tests.support.asgi import Client, Handler, app_of, gauge, run, service

# --- the request line


@pytest.mark.parametrize(
    ("path", "served"),
    [
        ("/embed/", "/embed"),
        ("//embed", "/embed"),
        ("/v1//models///a/", "/v1/models/a"),
        ("/", "/"),
        ("//", "/"),
        ("", ""),
        ("/embed", "/embed"),
        ("/a b/", "/a b"),
    ],
)
def test_slashes_too_many_are_as_if_they_were_not_there(path: str, served: str) -> None:
    async def tell_path(request: Request) -> Response:
        return Response(str(request.scope["path"]))

    client = run(Client(RequestLineMiddleware(app_of(tell_path)), path=path).run())
    assert client.messages[1]["body"] == served.encode()


def test_head_is_get_without_the_body() -> None:
    async def tell_method(request: Request) -> Response:
        return Response(request.method, headers={"x-more": "yes"})

    client = run(Client(RequestLineMiddleware(app_of(tell_method)), method="HEAD").run())
    assert client.messages[1]["body"] == b""
    assert (client.status, client.headers["content-length"], client.headers["x-more"]) == (200, "3", "yes")
    client = run(Client(RequestLineMiddleware(app_of(tell_method)), method="DELETE").run())
    assert client.messages[1]["body"] == b"DELETE"


# --- identity, times, log, metrics


PATHS = ("/embed", "/reconstruct", "/v1/models/{id}", "/a/{b}/c")
ROUTES = [Route(path, lambda request: Response()) for path in PATHS]
PARAMETERS = dict.fromkeys(PATHS, frozenset({"pool", "patches", "seed"}))


def observed(handler: Handler, of: Service | None = None) -> ObservabilityMiddleware:
    return ObservabilityMiddleware(app_of(handler), of or service(), ROUTES, PARAMETERS)


async def answer(request: Request) -> Response:
    record = record_of(request.scope)
    record.images, record.read = 3, 0.0015
    record.timings.decode, record.timings.queue, record.timings.infer = 0.25, 0.0, 0.0123
    return Response("answer")


@pytest.mark.parametrize("request_id", ["a", "0af7651916cd43dd8448eb211c80319c", "user:1/2.3+4=5-6_7", "x" * 128])
def test_a_request_keeps_its_id(request_id: str) -> None:
    client = Client(observed(answer), headers={"x-request-id": request_id})
    assert run(client.run()).headers["x-request-id"] == request_id


@pytest.mark.parametrize(
    "request_id", [None, "", "x" * 129, "two words", 'quo"te', "new\nline", "é", "ª", "<script>", "a;b"]
)
def test_a_request_without_a_good_id_gets_one(request_id: str | None) -> None:
    app = observed(answer)
    headers = {} if request_id is None else {"x-request-id": request_id}
    ids = {run(Client(app, headers=headers).run()).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


@pytest.mark.parametrize("path", ["/embed", "/info", "/nowhere"])
def test_every_answer_has_an_id_and_gives_a_trace_back(path: str) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = run(Client(observed(answer), path=path, headers={"traceparent": trace}).run()).headers
    assert headers["traceparent"] == trace
    assert "x-request-id" in headers
    assert "traceparent" not in run(Client(observed(answer), path=path).run()).headers


SECRETS = [
    (b"api_key=hush", "***"),
    (b"hush", "***"),
    (b"hush=", "***"),
    (b"pool=cls&api_key=hush&seed=7", "pool=cls&***&seed=7"),
    (b"po%6Fl=hush", "***"),
    (b"POOL=hush", "***"),
    (b"pool=cls;api_key", "pool=cls;api_key"),
    (b"pool=a b\x85\x1b[31m\xff", "pool=a%20b%85%1B[31m%FF"),
    (b"patches=" + b"1," * 500, "patches=" + "1," * 46 + "..."),
    (b"seed=1&" * 10_000, "seed=1&" * 142 + "seed=1"),
]


@pytest.mark.parametrize(("query", "logged"), SECRETS, ids=range(len(SECRETS)))
def test_the_log_shows_only_parameters_that_the_route_knows(
    caplog: pytest.LogCaptureFixture, query: bytes, logged: str
) -> None:
    caplog.set_level(logging.INFO, "service.access")
    run(Client(observed(answer), query_string=query).run())
    assert [line.fields["query"] for line in caplog.records] == [logged]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("address", "logged"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("2001:db8::1%eth0", "2001:db8::1%eth0"),
        ("x status=200 error=none", None),
        ("1.2.3.4\x85forged", None),
        ("unknown", None),
        ("1" * 100, None),
    ],
)
def test_the_log_shows_a_client_only_by_an_address(
    caplog: pytest.LogCaptureFixture, address: str, logged: str | None
) -> None:
    """A proxy on the same machine may pass on an X-Forwarded-For that the client has written."""
    caplog.set_level(logging.INFO, "service.access")
    run(Client(observed(answer), client=(address, 0)).run())
    assert [line.fields.get("client") for line in caplog.records] == [logged]  # type: ignore[attr-defined]


def test_what_is_no_traceparent_is_neither_given_back_nor_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    forged = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 status=200"
    answered = run(Client(observed(answer), headers={"traceparent": forged}).run())
    assert "traceparent" not in answered.headers
    [logged] = [record for record in caplog.records if record.name == "service.access"]
    assert "traceparent" not in logged.fields  # type: ignore[attr-defined]


def test_server_timing_tells_the_stages_that_were_passed() -> None:
    timing = run(Client(observed(answer)).run()).headers["server-timing"]
    stages = dict(re.fullmatch(r"(\w+);dur=([\d.]+)", part).groups() for part in timing.split(", "))  # type: ignore[union-attr]
    total = float(stages.pop("total"))
    assert stages == {"read": "1.5", "decode": "250.0", "infer": "12.3"}
    assert 0 <= total < 5000


def test_requests_for_inference_are_counted() -> None:
    of = service()
    app = observed(answer, of)
    for path in ("/embed", "/embed", "/reconstruct", "/info", "/metrics", "/readyz", "/"):
        run(Client(app, path=path).run())
    assert gauge(of, "mae_requests_total") == 3
    assert gauge(of, "mae_requests_total", endpoint="/embed", code="200") == 2
    assert gauge(of, "mae_images_total", endpoint="/embed") == 6
    assert gauge(of, "mae_request_duration_seconds_count", endpoint="/reconstruct") == 1
    assert gauge(of, "mae_inflight_requests") == 0


def test_reading_a_body_is_a_stage_and_what_was_refused_before_is_not() -> None:
    of = service()
    run(Client(observed(answer, of)).run())

    async def refuse(request: Request) -> Response:
        return Response(status_code=401)

    run(Client(observed(refuse, of)).run())
    assert gauge(of, "mae_stage_duration_seconds_count", stage="read") == 1
    assert gauge(of, "mae_stage_duration_seconds_sum", stage="read") == 0.0015


def test_what_alerts_watch_is_the_time_without_the_clients_part() -> None:
    async def slow_upload(request: Request) -> Response:
        record_of(request.scope).started -= 60
        record_of(request.scope).read = 59
        return Response()

    of = service()
    run(Client(observed(slow_upload, of)).run())
    whole = gauge(of, "mae_request_duration_seconds_sum", endpoint="/embed")
    processing = gauge(of, "mae_processing_duration_seconds_sum", endpoint="/embed")
    assert whole > 60 and processing == pytest.approx(whole - 59)
    assert gauge(of, "mae_processing_duration_seconds_count", endpoint="/embed") == 1


def test_a_path_below_a_prefix_is_the_same_endpoint() -> None:
    of = service()
    run(Client(observed(answer, of), path="/mae/embed", root_path="/mae").run())
    assert gauge(of, "mae_requests_total", endpoint="/embed") == 1


@pytest.mark.parametrize("path", ["/v1/models/a", "/v1/models/b c\n", "/mae/v1/models/c"])
def test_a_templated_route_is_counted_and_logged_as_its_template(path: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "service.access")
    of, seen = service(), []

    async def handler(request: Request) -> Response:
        assert gauge(of, "mae_inflight_requests") == 1
        seen.append(request.path_params)
        return Response()

    run(Client(observed(handler, of), path=path, root_path="/mae" if path.startswith("/mae") else "").run())
    assert gauge(of, "mae_requests_total") == gauge(of, "mae_requests_total", endpoint="/v1/models/{id}") == 1
    assert seen == [{"id": path.rsplit("/", 1)[1]}]
    assert [line.fields["path"] for line in caplog.records] == ["/v1/models/{id}"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/models/a/b", "/x/v1/models/a", "/a/b/c/d", "/a//c", "/embed/"])
def test_a_path_of_no_route_is_not_counted(path: str) -> None:
    of = service()
    run(Client(observed(answer, of), path=path).run())
    assert gauge(of, "mae_requests_total") == 0


def test_what_a_drain_refuses_does_not_prolong_it() -> None:
    of = service()
    of._state.change("draining")

    async def refuse(request: Request) -> Response:
        assert gauge(of, "mae_inflight_requests") == 0
        return Response(status_code=503)

    run(Client(observed(refuse, of)).run())
    assert gauge(of, "mae_inflight_requests") == 0
    assert gauge(of, "mae_requests_total", code="503") == 1


def test_refusals_are_counted_by_their_code_and_their_images_are_not() -> None:
    of = service()

    async def refuse(request: Request) -> Response:
        record_of(request.scope).images = 5
        record_of(request.scope).error = QueueFull.code
        return Response(status_code=429)

    run(Client(observed(refuse, of)).run())
    assert gauge(of, "mae_rejected_total", reason="queue_full") == 1
    assert gauge(of, "mae_requests_total", endpoint="/embed", code="429") == 1
    assert gauge(of, "mae_images_total") == 0


def test_an_exception_counts_as_500_and_goes_on() -> None:
    of = service()

    async def fail(request: Request) -> Response:
        assert gauge(of, "mae_inflight_requests") == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(Client(observed(fail, of)).run())
    assert gauge(of, "mae_requests_total", code="500") == 1
    assert gauge(of, "mae_inflight_requests") == 0


def test_a_request_that_nobody_waited_for_counts_as_499() -> None:
    async def main() -> Service:
        of = service()

        async def forever(request: Request) -> Response:
            await asyncio.sleep(3600)
            raise AssertionError

        task = asyncio.create_task(Client(observed(forever, of)).run())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return of

    of = run(main())
    assert gauge(of, "mae_requests_total", code="499") == 1
    assert gauge(of, "mae_inflight_requests") == 0


def test_the_access_log_has_one_line_a_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "service.access")
    app = observed(answer)
    scope = {"query_string": b"pool=cls&x=%0A", "client": ("10.0.0.7", 5)}
    run(Client(app, headers={"x-request-id": "abc"}, **scope).run())
    for path in ("/readyz", "/metrics", "/docs"):
        run(Client(app, path=path).run())
    (line,) = caplog.records
    fields = line.fields  # type: ignore[attr-defined]
    assert fields["ms"] >= 0
    assert "infer;dur=12.3" in fields["timing"]
    assert {name: value for name, value in fields.items() if name not in ("ms", "timing")} == {
        "method": "POST",
        "path": "/embed",
        "query": "pool=cls&***",
        "status": 200,
        "images": 3,
        "request_id": "abc",
        "client": "10.0.0.7",
    }


def test_what_is_no_http_passes_by() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    layers = (
        ObservabilityMiddleware(app, service(), ROUTES, PARAMETERS),
        BodyLimitMiddleware(app, service()),
        RequestLineMiddleware(app),
    )
    for layer in layers:
        run(Client(layer, type="lifespan").run())
    assert seen == ["lifespan"] * 3
