"""Engines that fail, and signals under load."""

import asyncio
import io
import signal
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.live.conftest import SECONDS, LiveServer, Start
from tests.support.clients import grey, many_connections, posts_in_threads
from tests.support.fake_server import POISON
from tests.support.gate import FileGate
from tests.support.waiting import until


@pytest.fixture
def end(tmp_path: Path) -> FileGate:
    """For a server with the variable FAKE_END."""
    return FileGate(tmp_path / "end")


@pytest.mark.parametrize("kind", ["raises", "nan"])
def test_a_poisoned_image_fails_alone(start_server: Start, gate: FileGate, kind: str) -> None:
    server = start_server({"FAKE": kind, "FAKE_GATE": gate.file}, max_batch=16)
    with posts_in_threads(server.url) as post:
        with gate.closed():
            first = post(grey(100))
            server.wait_for_metric("mae_lanes_busy", 1)
            posts = [post(grey(POISON if number == 9 else number)) for number in range(16)]
            server.wait_for_metric("mae_queue_images", 16)
        answers = [future.result() for future in posts]
        assert first.result().status_code == 200
    assert [answer.status_code for answer in answers] == [500 if number == 9 else 200 for number in range(16)]
    assert answers[9].json()["error"]["code"] == "inference_failed"
    assert "nan" not in answers[9].text.lower().replace("finite", "")
    assert "a poisoned image" not in answers[9].text, "the engine's own message is for the log"
    for number, answer in enumerate(answers):
        if number != 9:
            assert answer.json()["embeddings"][0] == [number] * 192
    assert server.metric("mae_batch_size_count") == 2, "the first image, and all the others in one batch"
    assert server.metric("mae_engine_failures_total") >= 1
    assert httpx.get(server.url + "/readyz").status_code == 200


@pytest.mark.parametrize("kind", ["fatal", "dies"])
def test_a_lost_engine_ends_the_process(start_server: Start, gate: FileGate, end: FileGate, kind: str) -> None:
    server = start_server({"FAKE": kind, "FAKE_GATE": gate.file, "FAKE_END": end.file}, max_batch=1)
    with end.closed(), posts_in_threads(server.url) as post:
        with gate.closed():
            first = post(grey(1))
            server.wait_for_metric("mae_lanes_busy", 1)
            posts = [post(grey(POISON))]
            server.wait_for_metric("mae_queue_images", 1)
            posts += [post(grey(n)) for n in range(20)]
            server.wait_for_metric("mae_queue_images", 21)
        assert first.result().status_code == 200
        for answer in [future.result() for future in posts]:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_lost")
        for probe in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
            answer = httpx.get(server.url + probe)
            assert answer.status_code == 503
            assert "lane 0 has ended" in answer.json()["reason"]
    assert server.process.wait(SECONDS) == 1
    assert "lane 0 has ended" in server.text()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_engine_that_hangs_ends_the_process(start_server: Start, end: FileGate, workers: int) -> None:
    fake = {"FAKE": "hangs", "FAKE_HANG_LEAST_S": "0.5", "FAKE_END": end.file}
    server = start_server(fake, max_batch=1, http_workers=workers)
    with end.closed(), posts_in_threads(server.url) as post:
        posts = [post(grey(POISON))]
        server.wait_for_metric("mae_batch_size_count", 1)
        posts += [post(grey(1)), post(grey(2))]
        for answer in [future.result() for future in posts]:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_lost")
        for probe in ("/livez", "/readyz"):
            answer = httpx.get(server.url + probe)
            assert answer.status_code == 503
            assert answer.json()["state"] == "lost"
            assert "lane 0 hangs: a batch of 1 for embed has not returned" in answer.json()["reason"]
    assert server.process.wait(SECONDS) == 1
    assert server.text().count("the engine is lost: lane 0 hangs") == 1
    assert "is still running a batch" in server.text()


def test_not_ready_while_loading(start_server: Start, gate: FileGate) -> None:
    with gate.closed():
        server = start_server({"FAKE_GATE": gate.file}, ready=False)
        assert httpx.get(server.url + "/livez").status_code == 200
        # before that the loader has not begun
        server.wait_for(lambda: httpx.get(server.url + "/readyz").json()["reason"] == "pretending to build")
        probe = httpx.get(server.url + "/readyz")
        assert (probe.status_code, probe.json()["reason"]) == (503, "pretending to build")
        answer = httpx.post(server.url + "/embed", content=grey(1))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        assert int(answer.headers["retry-after"]) > 0
    server.wait_until_ready()
    assert httpx.post(server.url + "/embed", content=grey(1)).status_code == 200


@pytest.mark.parametrize(("kind", "reason"), [("unbuildable", "out of memory, say"), ("unopenable", "info")])
def test_an_engine_that_cannot_be_used_ends_the_process(
    start_server: Start, gate: FileGate, kind: str, reason: str
) -> None:
    with gate.closed():
        server = start_server({"FAKE": kind, "FAKE_GATE": gate.file}, ready=False)
    assert server.process.wait(SECONDS) == 1
    assert f"the engine cannot be loaded: {reason}" in server.text() or f"'{reason}'" in server.text()


def test_the_deadline(start_server: Start, gate: FileGate) -> None:
    server = start_server({"FAKE_GATE": gate.file}, request_timeout_s=0.4)
    with gate.closed():
        answer = httpx.post(server.url + "/embed", content=grey(1))
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_passed")
    server.wait_for_metric("mae_requests_total", 1, code="504")
    for gauge in ("mae_lanes_busy", "mae_queue_images", "mae_admitted_images"):
        server.wait_for_metric(gauge, 0)


@pytest.fixture(scope="module")
def narrow(start_server: Start, gate: FileGate) -> LiveServer:
    """A batch has one image, and the queue eight."""
    return start_server({"FAKE_GATE": gate.file}, max_batch=1, queue_images=8, max_images=16)


def test_clients_that_leave_cost_nothing(narrow: LiveServer, gate: FileGate) -> None:
    server, computed = narrow, narrow.metric("mae_batch_size_sum")

    async def leave() -> None:
        async with many_connections(server.url) as client:
            tasks = [asyncio.create_task(client.post("/embed", content=grey(0)))]
            await until(lambda: server.metric("mae_lanes_busy") == 1)
            tasks += [asyncio.create_task(client.post("/embed", content=grey(n))) for n in range(8)]
            await until(lambda: server.metric("mae_queue_images") == 8)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with gate.closed():
        asyncio.run(leave())
        server.wait_for_metric("mae_requests_total", 9, code="499")
        server.wait_for_metric("mae_dropped_images_total", 8, reason="abandoned")
        server.wait_for(lambda: server.metric("mae_queue_images") == server.metric("mae_admitted_images") == 0)
    assert httpx.post(server.url + "/embed", content=grey(1)).status_code == 200
    assert server.metric("mae_batch_size_sum") == computed + 2, "one ran when its client left, and eight waited"


def test_queue_full(narrow: LiveServer, gate: FileGate) -> None:
    server = narrow
    with posts_in_threads(server.url) as post:
        with gate.closed():
            posts = [post(grey(0))]
            server.wait_for_metric("mae_lanes_busy", 1)
            posts += [post(grey(number)) for number in range(1, 9)]
            server.wait_for_metric("mae_admitted_images", 8)
            for _ in range(3):
                refused = post(grey(9)).result()
                assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
                assert int(refused.headers["retry-after"]) > 0
        answers = [future.result() for future in posts]
    assert [answer.json()["embeddings"][0][0] for answer in answers] == list(range(9))
    server.wait_for_metric("mae_rejected_total", 3, reason="queue_full")
    too_many = httpx.post(server.url + "/embed", files=[("i", ("i", grey(1)))] * 9)
    assert (too_many.status_code, too_many.json()["error"]["code"]) == (413, "too_many_images")
    assert httpx.post(server.url + "/embed", content=grey(1)).status_code == 200


def test_sigterm_under_load(start_server: Start, gate: FileGate) -> None:
    """Accepted requests are answered, later ones are refused with 503, and the exit code is 0."""
    loaded = start_server({"FAKE_GATE": gate.file}, max_batch=8)

    async def load() -> list[httpx.Response]:
        async with many_connections(loaded.url) as client:
            with gate.closed():
                early = [asyncio.create_task(client.post("/embed", content=grey(0)))]
                await until(lambda: loaded.metric("mae_lanes_busy") == 1)
                early += [asyncio.create_task(client.post("/embed", content=grey(n))) for n in range(1, 60)]
                await until(lambda: loaded.metric("mae_admitted_images") == 59)
                loaded.process.send_signal(signal.SIGTERM)
                await until(lambda: httpx.get(loaded.url + "/readyz").status_code == 503)
                late = await asyncio.gather(*(client.post("/embed", content=grey(n)) for n in range(20)))
                assert {answer.status_code for answer in late} == {503}
                assert {answer.json()["error"]["code"] for answer in late} == {"draining"}
                assert {answer.headers["connection"] for answer in late} == {"close"}
                assert (await client.get("/livez")).status_code == 200
            return await asyncio.gather(*early)

    assert [answer.json()["embeddings"][0][0] for answer in asyncio.run(load())] == list(range(60))
    assert loaded.process.wait(SECONDS) == 0


def test_the_end_of_the_drain(start_server: Start, gate: FileGate) -> None:
    slow = start_server({"FAKE_GATE": gate.file}, drain_timeout_s=0.5)
    with posts_in_threads(slow.url) as post, gate.closed():
        unfinished = post(grey(1))
        slow.wait_for_metric("mae_lanes_busy", 1)
        slow.process.send_signal(signal.SIGTERM)
        answer = unfinished.result()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    assert slow.process.wait(SECONDS) == 0
    assert "cut off" in slow.text()


def test_clients_that_retry_do_not_prolong_the_drain(start_server: Start) -> None:
    server = start_server({}, drain_timeout_s=600)

    async def retry(client: httpx.AsyncClient) -> None:
        while server.process.poll() is None:
            try:
                await client.post("/embed", content=grey(1))
            except httpx.TransportError:  # it has gone, or is going
                await asyncio.sleep(0.01)

    async def clients() -> None:
        async with httpx.AsyncClient(base_url=server.url) as client:
            tasks = [asyncio.create_task(retry(client)) for _ in range(12)]
            await until(lambda: server.metric("mae_requests_total", code="200") >= 12)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(*tasks), SECONDS)  # or it drains for ever, with nothing to finish

    asyncio.run(clients())
    assert server.process.returncode == 0


def test_vectors_of_the_fake_engine_are_means_and_sigterm_ends_an_idle_server(start_server: Start) -> None:
    """The tests above compare with the means."""
    server = start_server({})
    answer = httpx.post(server.url + "/embed", content=grey(77), headers={"accept": "application/x-npy"})
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), np.full((1, 192), 77, np.float32))
    assert server.terminate() == 0
