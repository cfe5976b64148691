"""Load: figures from recorded output of wrk and its script, and a second of real load."""

import email
import email.policy
import shutil

import numpy as np
import pytest

from model.config import PRESETS
from service.api.open_inference.messages import parse_request
from service.benchmark import load
from service.benchmark.load import (
    Clocks,
    figures_of,
    multipart,
    open_inference_routes,
    routes_of,
    run_seconds,
    send_closed_load,
    send_open_load,
)
from service.benchmark.processes import ServerProcess
from service.benchmark.samples import generate_sample

# Both as recorded from wrk 4.1.0: twenty connections that pause, every third body no image.
WRK_OUTPUT = """\
Running 1s test @ http://127.0.0.1:36795
  1 threads and 20 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    38.47ms   48.50ms 142.03ms   83.33%
    Req/Sec    12.56      7.40    29.00     66.67%
  12 requests in 1.02s, 20.58KB read
  Non-2xx or 3xx responses: 4
Requests/sec:     11.76
Transfer/sec:     20.17KB
{"never_answered": 0}
"""
SCRIPT_LOG = """\
24804.482336 24804.581654 200
24804.634897 24804.715934 200
24804.635014 24804.715965 200
24804.581695 24804.723767 400
24804.784056 24804.787203 400
24804.880497 24804.887426 200
24805.013001 24805.023405 200
24805.069628 24805.071554 400
24805.160733 24805.167427 200
24805.296689 24805.309417 200
24805.299049 24805.309440 400
24805.402685 24805.409897 200
"""
NEEDS_WRK = pytest.mark.skipif(shutil.which("wrk") is None, reason=load.WRK_MISSING)


def test_figures_are_of_what_was_answered_within_the_window() -> None:
    """From 24804.6 to 24805.2: 200 after 81.037, 80.951, 6.929, 10.404 and 6.694 ms, and three answers of 400."""
    figures = figures_of(
        SCRIPT_LOG,
        WRK_OUTPUT,
        Clocks(24804.6, 10.0, 3, 3),
        Clocks(24805.2, 10.3, 7, 13),
        route="/embed",
        connections=20,
        load_core_s=0.024,
        rate_per_s=12.5,
    )
    assert (figures.answered, figures.failed, figures.images_per_s) == (5, 3, pytest.approx(5 / 0.6))
    assert figures.p50_ms == pytest.approx(10.404, abs=1e-3)
    assert figures.p95_ms == pytest.approx(80.951 + 0.8 * 0.086, abs=2e-3)
    assert figures.p99_ms == pytest.approx(80.951 + 0.96 * 0.086, abs=2e-3)
    assert figures.images_per_batch == 2.5
    assert (figures.core_ms, figures.server_cores) == (pytest.approx(60), pytest.approx(0.5))
    assert figures.load_core_ms == pytest.approx(2), "of all twelve requests, as wrk's time is of its whole run"
    assert (figures.arrivals, figures.asked_per_s) == ("open", 12.5)


def test_what_was_never_answered_has_failed_and_without_answers_there_are_no_percentiles() -> None:
    output = WRK_OUTPUT.replace('{"never_answered": 0}', '{"never_answered": 7}')
    clocks = Clocks(1.0, None), Clocks(2.0, None, 5, 9)  # the first time the server did not tell its batches
    figures = figures_of("", output, *clocks, route="/embed", connections=7, load_core_s=0.01)
    assert (figures.failed, figures.images_per_s, figures.p50_ms, figures.arrivals) == (7, 0, None, "closed")
    assert (figures.core_ms, figures.server_cores, figures.load_core_ms) == (None, None, None)
    assert (figures.p95_ms, figures.images_per_batch) == (None, None)


def test_a_run_is_as_long_as_its_window_and_three_answers_of_each_connection_need() -> None:
    assert run_seconds(3, 1, None) == 4
    assert run_seconds(3, 4, 100) == 4
    assert run_seconds(3, 256, 100) == 8, "three times 2.56 s"
    assert run_seconds(3, 256, 20) is None, "38 s are too many"
    assert run_seconds(30, 1, None) is None


def test_a_form_as_another_parser_reads_it() -> None:
    body = b"\x00\r\n--\xff"
    [route] = [route for route in routes_of([body], True) if route.name == "/embed, multipart"]
    head = f"Content-Type: {route.content_type}\r\n\r\n".encode()
    form = email.message_from_bytes(head + multipart(body), policy=email.policy.HTTP)
    [part] = form.iter_parts()
    assert (part.get_filename(), part.get_content()) == ("image", body)
    assert route.bodies == (multipart(body),)


def test_a_model_without_decoder_is_not_asked_to_reconstruct() -> None:
    assert [route.name for route in routes_of([b""], False)] == ["/embed", "/embed, multipart"]


def test_bodies_of_the_open_inference_protocol_hold_the_images_and_squares() -> None:
    files = (b"\xff\xd8one", b"\xff\xd8another")
    raw, binary, pixels = open_inference_routes(files, PRESETS["mae_tiny"])
    assert raw.bodies == files
    for route in (raw, binary, pixels):
        assert set(route.headers) == {"Content-Type", "Inference-Header-Content-Length"}
        parsed = [
            parse_request(body, route.headers["Inference-Header-Content-Length"], "image") for body in route.bodies
        ]
        assert all(request.is_binary("embedding") for request in parsed)
        tensors = [next(iter(request.inputs.values())) for request in parsed]
        if route is pixels:
            squares = [np.asarray(tensor.values) for tensor in tensors]
            assert all(square.shape == (1, 224, 224, 3) and square.dtype == np.uint8 for square in squares)
            assert not np.array_equal(*squares)
        else:
            assert [tensor.values for tensor in tensors] == [[file] for file in files]


@NEEDS_WRK
def test_a_second_of_load(null_server: ServerProcess) -> None:
    """Every route answers; `failed` says when one does not."""
    small = generate_sample("JPEG", 250, 167, 2)
    embed, form, reconstruct = routes_of(small.files, True)
    pixels = open_inference_routes(small.files, PRESETS["mae_tiny"])[-1]
    for route in (form, reconstruct, pixels):
        figures = send_closed_load(null_server, route, 4, 1)
        assert figures.answered > 0 and figures.failed == 0
        assert figures.images_per_s == pytest.approx(figures.answered / figures.window_s)
        assert figures.p50_ms is not None and 0 < figures.p50_ms <= figures.p99_ms  # type: ignore[operator]
        assert figures.core_ms is None or figures.core_ms > 0
        assert figures.images_per_batch is not None and 1 <= figures.images_per_batch <= 4
        # Little's law, which knows nothing of how it was measured: four requests are under way at any time.
        under_way = figures.images_per_s * figures.p50_ms / 1000
        assert 1 < under_way < 8
    nonsense = load.Route("/embed", "/embed", embed.content_type, (b"no image", *small.files))
    figures = send_open_load(null_server, nonsense, 60, 1)
    assert figures.arrivals == "open" and 0 < figures.answered < 150, "as many as asked for, not as many as possible"
    assert figures.failed > 0
