"""HTTP_WORKERS: several processes on one port are one service, whichever of them dies."""

import asyncio
import contextlib
import io
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.live.conftest import SECONDS, LiveServer, Start
from tests.support.clients import grey, many_connections, posts_in_threads
from tests.support.fake_server import POISON
from tests.support.gate import FileGate
from tests.support.metrics import families
from tests.support.waiting import until

ENGINE_FAILURE = {"code": "inference_failed", "message": "the engine failed on image 0", "details": {"image": 0}}

ACCESS = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.+]+ INFO +request method=POST path=/embed (query=\S+ )?status=\d+ [^\n]*client=127.0.0.1"
)
FAILS_ON_POISON: dict[str, object] = {"FAKE": "raises", "FAKE_S": "0.005"}


def workers_of(server: LiveServer) -> list[int]:
    """The process ids of its workers."""
    task = Path(f"/proc/{server.process.pid}/task")
    children = [int(pid) for thread in task.iterdir() for pid in (thread / "children").read_text().split()]
    return sorted(pid for pid in children if "service.workers" in command_of(pid))


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def worker_of(client: httpx.Client, server: LiveServer) -> int:
    """The worker that has the other end of a client's only connection."""
    port = client.get("/livez").extensions["network_stream"].get_extra_info("client_addr")[1]
    # The kernel lists the inode of each socket with its addresses; the process that holds the socket has it open.
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # Connections to other servers may come from the same port.
    ends = [f":{int(number):04X}" for number in (server.url.rsplit(":", 1)[1], port)]
    [inode] = [fields[9] for fields in sockets if all(map(str.endswith, fields[1:3], ends))]
    for pid in workers_of(server):
        if f"socket:[{inode}]" in {target_of(path) for path in Path(f"/proc/{pid}/fd").iterdir()}:
            return pid
    raise AssertionError("no worker has this connection")


def target_of(path: Path) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def one_client_each(server: LiveServer) -> Iterator[dict[int, httpx.Client]]:
    """A client with a kept connection for each worker."""
    clients: dict[int, httpx.Client] = {}
    end = time.monotonic() + SECONDS
    with contextlib.ExitStack() as stack:
        while len(clients) < len(workers_of(server)) or not clients:
            assert time.monotonic() < end, "one worker takes all connections"
            client = stack.enter_context(httpx.Client(base_url=server.url))
            clients.setdefault(worker_of(client, server), client)
        yield clients


def start_two(start_server: Start, fake: dict[str, object], **settings: object) -> LiveServer:
    server = start_server(fake, http_workers=2, **settings)
    server.wait_for(lambda: server.text().count("Application startup complete") >= 2)
    return server


def totals(text: str) -> dict[str, float]:
    """All counters and histograms of requests, by sample; scrapes and probes are not counted."""
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in families(text).values()
        if family.name.startswith("mae_") and family.type in ("counter", "histogram")
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def pair(start_server: Start) -> LiveServer:
    """Two workers, and an engine that fails on one grey."""
    return start_two(start_server, FAILS_ON_POISON, max_batch=16)


@pytest.fixture(scope="module")
def clients(pair: LiveServer) -> Iterator[dict[int, httpx.Client]]:
    with one_client_each(pair) as clients:
        yield clients


def test_answers_are_those_of_one_process(
    start_server: Start, pair: LiveServer, photographs: dict[str, Image.Image]
) -> None:
    """Mixed operations and numbers of visible patches, one image and several, at once, against HTTP_WORKERS=0."""
    single = start_server(FAILS_ON_POISON, max_batch=16)
    bodies = []
    for picture in photographs.values():
        out = io.BytesIO()
        picture.save(out, "PNG")
        bodies.append(out.getvalue())
    requests: list[tuple[str, dict[str, str], list[bytes]]] = [
        ("/embed", {}, bodies),
        ("/embed?pool=cls&keep=0.25&seed=3", {}, bodies[:1]),
        ("/embed?pool=tokens&keep=0.5&seed=4", {"accept": "application/x-npy"}, bodies[1:3]),
        ("/embed?pool=tokens", {"accept": "application/x-npy"}, bodies[:1]),
        ("/reconstruct?seed=5&view=panel", {}, bodies[2:3]),
        ("/reconstruct?seed=6&mask_ratio=0.5", {}, bodies),
        ("/reconstruct?seed=7&draws=5&view=spread", {}, bodies[:1]),
        ("/explain?seed=8&passes=20&target=similarity", {}, bodies[:2]),
        ("/explain?seed=8&target=class", {}, bodies[:1]),
        ("/explain?seed=8&target=similarity", {}, [bodies[0], b"no image"]),
        ("/reconstruct?seed=7&draws=64", {"accept": "application/json"}, bodies[:2]),
        ("/anomaly?seed=7&passes=5", {}, bodies[:1]),
        ("/anomaly?seed=8&mask_ratio=0.5", {}, bodies),
        ("/anomaly?on_error=skip&seed=9", {}, [grey(POISON), bodies[0]]),
        ("/embed", {}, [grey(POISON), bodies[0]]),
        ("/embed", {}, [b"no image"]),
        ("/embed?pool=none", {}, bodies[:1]),
        ("/embed", {"accept": "image/gif"}, bodies[:1]),
        ("/embed", {}, [grey(1)] * 65),
        ("/classify", {}, bodies[:1]),
    ]

    async def ask(server: LiveServer) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            return await asyncio.gather(
                *(
                    client.post(path, headers=headers, files=[("image", ("ä漢.png", body)) for body in images])
                    for path, headers, images in requests
                )
            )

    for expected, answer in zip(asyncio.run(ask(single)), asyncio.run(ask(pair)), strict=True):
        assert answer.status_code == expected.status_code
        assert answer.content == expected.content
        for name in (
            "x-mae-loss",
            "x-mae-score",
            "x-mae-seed",
            "x-mae-model",
            "content-type",
            "retry-after",
            "connection",
        ):
            assert answer.headers.get(name) == expected.headers.get(name)
    assert httpx.get(pair.url + "/info").json() == httpx.get(single.url + "/info").json()
    assert single.terminate() == 0


def test_every_connection_sees_the_same_service(pair: LiveServer, clients: dict[int, httpx.Client]) -> None:
    counters: list[tuple[str, dict[str, str], int]] = [
        ("mae_requests_total", {"code": "200"}, 2),
        ("mae_requests_total", {"code": "500"}, 2),
        ("mae_request_duration_seconds_count", {}, 6),
        ("mae_request_duration_seconds_bucket", {"le": "+Inf"}, 6),
        ("mae_rejected_total", {"reason": "undecodable_image"}, 2),
        ("mae_stage_duration_seconds_count", {"stage": "queue"}, 4),
    ]
    before = [pair.metric(name, **labels) for name, labels, _ in counters]
    for number, client in enumerate(clients.values()):
        answer = client.post("/embed", content=grey(10 + number))
        assert answer.json()["embeddings"][0] == [10 + number] * 192
        failed = client.post("/embed", content=grey(POISON))
        assert (failed.status_code, failed.json()["error"]) == (500, ENGINE_FAILURE)
        assert (client.get("/readyz").status_code, client.get("/livez").status_code) == (200, 200)
        assert client.post("/embed", content=b"no image").json()["error"]["code"] == "undecodable_image"
    for (name, labels, more), value in zip(counters, before, strict=True):
        pair.wait_for_metric(name, value + more, **labels)
    expositions = [totals(pair.exposition(client)) for client in clients.values()]
    assert expositions[0] == expositions[1]
    assert pair.metric("mae_ready") == 1
    pair.wait_for(lambda: pair.metric("mae_admitted_images") == pair.metric("mae_inflight_requests") == 0)


def test_a_large_body_and_one_that_is_too_large(pair: LiveServer, clients: dict[int, httpx.Client]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "BMP")
    for client in clients.values():
        assert client.post("/embed", content=out.getvalue()).status_code == 200
        assert client.post("/embed", content=bytes(33_000_000)).status_code == 413
    pair.wait_for_metric("mae_inflight_bytes", 0)


def test_a_killed_worker_is_replaced_and_other_clients_notice_nothing(start_server: Start, gate: FileGate) -> None:
    server = start_two(start_server, {"FAKE_GATE": gate.file}, max_batch=4, queue_images=40)
    with one_client_each(server) as clients, ThreadPoolExecutor() as pool:
        (doomed, victim), (other, bystander) = clients.items()
        assert victim.post("/embed", content=grey(1)).status_code == 200
        assert bystander.post("/embed", content=grey(2)).status_code == 200
        server.wait_for_metric("mae_requests_total", 2, code="200")  # the engine process knows it

        def ask(client: httpx.Client, count: int) -> httpx.Response:
            return client.post("/embed", files=[("i", ("i", grey(n))) for n in range(count)])

        with gate.closed():
            lost = pool.submit(ask, victim, 20)
            server.wait_for_metric("mae_batch_size_count", 3)
            running = server.metric("mae_batch_size_sum") - 2  # images of the victim
            server.wait_for_metric("mae_queue_images", 20 - running)
            unharmed = pool.submit(ask, bystander, 12)
            server.wait_for_metric("mae_queue_images", 32 - running)
            os.kill(doomed, signal.SIGKILL)
            assert isinstance(lost.exception(SECONDS), httpx.TransportError)
            server.wait_for_metric("mae_queue_images", 12)
        answer = unharmed.result(SECONDS)
        assert answer.status_code == 200
        assert [vector[0] for vector in answer.json()["embeddings"]] == list(range(12))
    server.wait_for(lambda: server.text().count("Application startup complete") == 3)
    assert other in workers_of(server) and doomed not in workers_of(server) and len(workers_of(server)) == 2
    for pid in workers_of(server):
        files = [target_of(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        assert not [file for file in files if file.endswith("fake_server.py")], "it has inherited a file of the engine"
    assert "has died" in server.text() and "signal 9" in server.text()
    server.wait_for(lambda: server.metric("mae_requests_total") >= 3)
    assert server.metric("mae_requests_total", code="200") == 3, "the counts of the dead worker are lost"
    for gauge in ("mae_queue_images", "mae_admitted_images", "mae_inflight_requests", "mae_inflight_bytes"):
        server.wait_for_metric(gauge, 0)
    assert server.metric("mae_dropped_images_total", reason="abandoned") == 20 - running
    with one_client_each(server) as clients:
        for client in clients.values():
            assert client.post("/embed", content=grey(9)).status_code == 200
        workers = list(clients)
    server.process.kill()
    server.process.wait()
    end = time.monotonic() + SECONDS
    while [pid for pid in workers if "service.workers" in command_of(pid)]:
        assert time.monotonic() < end, "the workers outlive the engine process"
        time.sleep(0.02)
    assert not [name for name in os.listdir("/dev/shm") if "mae" in name]


def test_the_queue_is_one(start_server: Start, gate: FileGate) -> None:
    server = start_two(start_server, {"FAKE_GATE": gate.file}, max_batch=1, queue_images=4, max_images=16)

    def fill(query: str, rooms: list[float]) -> list[httpx.Response]:
        """Fills the lane, and then the queue: after request n it must hold rooms[n - 1] images for all workers."""
        with one_client_each(server) as clients, posts_in_threads(server.url) as post:
            with gate.closed():
                posts = [post(grey(0), query)]
                server.wait_for_metric("mae_lanes_busy", 1)
                for number, room in enumerate(rooms, 1):
                    posts.append(post(grey(number), query))
                    server.wait_for_metric("mae_admitted_images", room)
                for client in clients.values():
                    refused = client.post(f"/embed?{query}", content=grey(99))
                    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
                    assert refused.json()["error"]["details"] == {"limit": 4}
            answers = [future.result() for future in posts]
        assert [answer.json()["embeddings"][0][0] for answer in answers] == list(range(len(rooms) + 1))
        server.wait_for_metric("mae_lanes_busy", 0)
        return answers

    assert {answer.json()["keep"] for answer in fill("", [1, 2, 3, 4])} == {1}
    # Half of the queue is for whole images, a quarter of it for halves, and the last quarter for quarters.
    answers = fill("min_keep=0.25", [1, 2, 2.5, 3, 3.25, 3.5, 3.75, 4])
    assert [answer.json()["keep"] for answer in answers] == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    server.wait_for_metric("mae_degraded_images_total", 6)
    server.wait_for_metric("mae_rejected_total", 4, reason="queue_full")
    too_many = httpx.post(server.url + "/embed", files=[("i", ("i", grey(1)))] * 5)
    assert (too_many.status_code, too_many.json()["error"]["code"]) == (413, "too_many_images")

    async def leave() -> None:
        async with many_connections(server.url) as client:
            tasks = [asyncio.create_task(client.post("/embed", content=grey(n))) for n in range(4)]
            await until(lambda: server.metric("mae_queue_images") == 3)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    with gate.closed():
        asyncio.run(leave())
        server.wait_for_metric("mae_requests_total", 4, code="499")
        server.wait_for(lambda: server.metric("mae_admitted_images") == server.metric("mae_inflight_requests") == 0)
    assert httpx.post(server.url + "/embed", content=grey(1)).status_code == 200
    requests = 5 + 2 + 9 + 2 + 1 + 4 + 1
    server.wait_for_metric("mae_requests_total", requests)
    server.wait_for(lambda: server.text().count("path=") >= requests)
    logged = [line for line in server.text().splitlines() if "path=" in line]
    assert len(logged) == requests, "the log has a line for each request, of all workers"
    assert all(ACCESS.fullmatch(line) for line in logged), "and none in the middle of another"


def test_a_drain_answers_accepted_requests(start_server: Start, gate: FileGate) -> None:
    server = start_two(start_server, {"FAKE_GATE": gate.file}, max_batch=8)
    with one_client_each(server) as clients, posts_in_threads(server.url) as post:
        with gate.closed():
            early = [post(grey(0))]
            server.wait_for_metric("mae_lanes_busy", 1)
            early += [post(grey(n)) for n in range(1, 48)]
            server.wait_for_metric("mae_admitted_images", 47)
            server.process.send_signal(signal.SIGTERM)
            for client in clients.values():
                server.wait_for(lambda client=client: client.get("/readyz").status_code == 503)
            late = [post(grey(n)).result() for n in range(10)]
            late += [client.post("/embed", content=grey(1)) for client in clients.values()]
            assert {(answer.status_code, answer.json()["error"]["code"]) for answer in late} == {(503, "draining")}
        assert [future.result().json()["embeddings"][0][0] for future in early] == list(range(48))
    assert server.process.wait(SECONDS) == 0


def test_a_lost_engine_is_lost_everywhere(start_server: Start, gate: FileGate, tmp_path: Path) -> None:
    end = FileGate(tmp_path / "end")
    fake: dict[str, object] = {"FAKE": "fatal", "FAKE_GATE": gate.file, "FAKE_END": end.file}
    server = start_two(start_server, fake, max_batch=1)
    with end.closed(), one_client_each(server) as clients, posts_in_threads(server.url) as post:
        with gate.closed():
            posts = [post(grey(POISON))]
            server.wait_for_metric("mae_lanes_busy", 1)
            posts += [post(grey(n)) for n in range(10)]
            server.wait_for_metric("mae_queue_images", 10)
        for answer in [future.result() for future in posts]:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_lost")
        for client in clients.values():
            for path in ("/livez", "/readyz"):
                answer = client.get(path)
                assert answer.status_code == 503 and "lane 0 has ended" in answer.json()["reason"]
            refused = client.post("/embed", content=grey(1))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_lost")
    assert server.process.wait(SECONDS) == 1
