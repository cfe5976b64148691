"""Engines that fail, and signals under load."""

import asyncio
import io
import signal
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from tests.live.conftest import LiveServer, Start
from tests.support.clients import grey, many_connections, post_all
from tests.support.fake_server import POISON


@pytest.mark.parametrize("kind", ["raises", "nan"])
def test_a_poisoned_image_fails_alone(start_server: Start, kind: str) -> None:
    server = start_server({"FAKE": kind}, max_delay_ms=2000, max_batch=16)
    bodies = [grey(POISON if number == 9 else number) for number in range(16)]
    answers = asyncio.run(post_all(server.url, bodies))
    assert [answer.status_code for answer in answers] == [500 if number == 9 else 200 for number in range(16)]
    assert answers[9].json()["error"]["code"] == "inference_failed"
    assert "nan" not in answers[9].text.lower().replace("finite", "")
    assert "a poisoned image" not in answers[9].text, "the engine's own message is for the log"
    for number, answer in enumerate(answers):
        if number != 9:
            assert answer.json()["embeddings"][0] == [number] * 192
    assert server.metric("mae_batch_size_bucket", le="8.0") == 0, "they were meant to share one batch"
    assert server.metric("mae_engine_failures_total") >= 1
    assert httpx.get(server.url + "/readyz").status_code == 200


@pytest.mark.parametrize("kind", ["fatal", "dies"])
def test_a_lost_engine_ends_the_process(start_server: Start, kind: str) -> None:
    server = start_server({"FAKE": kind}, max_batch=1)
    answers = asyncio.run(post_all(server.url, [grey(1), grey(POISON), *(grey(n) for n in range(20))]))
    assert {answer.status_code for answer in answers} <= {200, 503}
    lost = [answer.json()["error"] for answer in answers if answer.status_code == 503]
    assert lost and {error["code"] for error in lost} == {"engine_lost"}
    for probe in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
        answer = httpx.get(server.url + probe)
        assert answer.status_code == 503
        assert "lane 0 has ended" in answer.json()["reason"]
    assert server.process.wait(20) == 1
    assert "lane 0 has ended" in server.text()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_engine_that_hangs_ends_the_process(start_server: Start, workers: int) -> None:
    server = start_server({"FAKE": "hangs", "FAKE_HANG_LEAST_S": "0.5"}, max_batch=1, http_workers=workers)
    answers = asyncio.run(post_all(server.url, [grey(POISON), grey(1), grey(2)]))
    assert answers[0].status_code == 503
    lost = [answer.json()["error"] for answer in answers if answer.status_code != 200]
    assert {error["code"] for error in lost} == {"engine_lost"}
    for probe in ("/livez", "/readyz"):
        answer = httpx.get(server.url + probe)
        assert answer.status_code == 503
        assert answer.json()["state"] == "lost"
        assert "lane 0 hangs: a batch of 1 for embed has not returned" in answer.json()["reason"]
    assert server.process.wait(20) == 1
    assert server.text().count("the engine is lost: lane 0 hangs") == 1
    assert "is still running a batch" in server.text()


def test_not_ready_while_loading(start_server: Start) -> None:
    server = start_server({"FAKE_LOAD_S": "3"}, ready=False)
    assert httpx.get(server.url + "/livez").status_code == 200
    probe = httpx.get(server.url + "/readyz")
    assert (probe.status_code, probe.json()["reason"]) == (503, "pretending to build")
    answer = httpx.post(server.url + "/embed", content=grey(1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert int(answer.headers["retry-after"]) > 0
    server.wait_until_ready()
    assert httpx.post(server.url + "/embed", content=grey(1)).status_code == 200


@pytest.mark.parametrize(("kind", "reason"), [("unbuildable", "out of memory, say"), ("unopenable", "info")])
def test_an_engine_that_cannot_be_used_ends_the_process(start_server: Start, kind: str, reason: str) -> None:
    server = start_server({"FAKE": kind, "FAKE_LOAD_S": "0.5"}, ready=False)
    assert server.process.wait(20) == 1
    assert f"the engine cannot be loaded: {reason}" in server.text() or f"'{reason}'" in server.text()


def test_the_deadline(start_server: Start) -> None:
    server = start_server({"FAKE_S": "1"}, request_timeout_s=0.4)
    start = time.monotonic()
    answer = httpx.post(server.url + "/embed", content=grey(1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_passed")
    assert time.monotonic() - start < 1
    time.sleep(1.2)  # until the batch is done
    assert server.metric("mae_requests_total", code="504") == 1
    assert server.metric("mae_queue_images") == server.metric("mae_admitted_images") == 0


def test_a_client_that_leaves_costs_nothing(start_server: Start) -> None:
    server = start_server({"FAKE_S": "0.5"}, max_batch=1)

    async def leave() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=0.3) as client:
            tasks = [client.post("/embed", content=grey(n)) for n in range(30)]
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(error, httpx.TimeoutException)

    asyncio.run(leave())
    server.wait_for(lambda: server.metric("mae_requests_total", code="499") == 30, 10)
    start = time.monotonic()
    assert httpx.post(server.url + "/embed", content=grey(1)).status_code == 200
    assert time.monotonic() - start < 2.5, "it waited for images of clients that have left"
    assert server.metric("mae_batch_size_sum") <= 4
    assert server.metric("mae_dropped_images_total", reason="abandoned") >= 27
    assert server.metric("mae_admitted_images") == 0


def test_queue_full(start_server: Start) -> None:
    server = start_server({"FAKE_S": "0.3"}, max_batch=1, queue_images=4, max_images=16)
    answers = asyncio.run(post_all(server.url, [grey(n) for n in range(40)]))
    counts = {status: sum(answer.status_code == status for answer in answers) for status in (200, 429)}
    assert counts[200] + counts[429] == 40 and counts[200] >= 4 and counts[429] >= 20
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "queue_full" and int(refused.headers["retry-after"]) > 0
    assert server.metric("mae_rejected_total", reason="queue_full") == counts[429]
    too_many = httpx.post(server.url + "/embed", files=[("i", ("i", grey(1)))] * 5)
    assert (too_many.status_code, too_many.json()["error"]["code"]) == (413, "too_many_images")
    assert httpx.post(server.url + "/embed", content=grey(1)).status_code == 200


@pytest.fixture
def loaded(start_server: Start) -> Iterator[LiveServer]:
    yield start_server({"FAKE_S": "0.2"}, max_batch=8)


def test_sigterm_under_load(loaded: LiveServer) -> None:
    """Accepted requests are answered, later ones are refused with 503, and the exit code is 0."""

    async def load() -> tuple[list[httpx.Response], list[httpx.Response | BaseException]]:
        async with many_connections(loaded.url) as client:
            early = [asyncio.create_task(client.post("/embed", content=grey(n % 200))) for n in range(60)]
            while images_so_far(loaded) < 60:
                await asyncio.sleep(0.02)
            loaded.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
            late = [asyncio.create_task(client.post("/embed", content=grey(n))) for n in range(20)]
            ready = await client.get("/readyz")
            assert ready.status_code == 503
            assert (await client.get("/livez")).status_code == 200
            return await asyncio.gather(*early), await asyncio.gather(*late)

    early, late = asyncio.run(load())
    assert {answer.status_code for answer in early} == {200}
    for number, answer in enumerate(early):
        assert answer.json()["embeddings"][0][0] == number % 200
    assert {answer.status_code for answer in late} == {503}
    assert {answer.json()["error"]["code"] for answer in late} == {"draining"}
    assert {answer.headers["connection"] for answer in late} == {"close"}
    assert loaded.process.wait(20) == 0


def images_so_far(server: LiveServer) -> float:
    return server.metric("mae_admitted_images") + server.metric("mae_batch_size_sum")


def test_sigterm_when_idle_and_drain_timeout(start_server: Start) -> None:
    assert start_server({}).terminate(10) == 0
    slow = start_server({"FAKE_S": "30"}, drain_timeout_s=0.5)

    async def cut_off() -> None:
        async with httpx.AsyncClient(base_url=slow.url, timeout=30) as client:
            task = asyncio.create_task(client.post("/embed", content=grey(1)))
            await asyncio.sleep(0.5)
            slow.process.send_signal(signal.SIGTERM)
            answer = await task
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")

    asyncio.run(cut_off())
    assert slow.process.wait(20) == 0
    assert "cut off" in slow.text()


def test_clients_that_retry_do_not_prolong_the_drain(start_server: Start) -> None:
    server = start_server({}, drain_timeout_s=30)
    end = time.monotonic() + 15

    async def retry(client: httpx.AsyncClient) -> None:
        while server.process.poll() is None:
            assert time.monotonic() < end, "still draining, with nothing to finish"
            try:
                await client.post("/embed", content=grey(1))
            except httpx.TransportError:  # it has gone, or is going
                await asyncio.sleep(0.01)

    async def clients() -> None:
        async with httpx.AsyncClient(base_url=server.url) as client:
            tasks = [asyncio.create_task(retry(client)) for _ in range(12)]
            await asyncio.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*tasks)

    asyncio.run(clients())
    assert server.process.returncode == 0


def test_vectors_of_the_fake_engine_are_means(start_server: Start) -> None:
    """The tests above compare with this."""
    server = start_server({})
    answer = httpx.post(server.url + "/embed", content=grey(77), headers={"accept": "application/x-npy"})
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), np.full((1, 192), 77, np.float32))
