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

from tests.live.conftest import LiveServer, Start
from tests.support.clients import grey, many_connections, post_all
from tests.support.fake_server import POISON
from tests.support.metrics import families

ENGINE_FAILURE = {"code": "inference_failed", "message": "the engine failed on image 0", "details": {"image": 0}}

ACCESS = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.+]+ INFO +request method=POST path=/embed (query=\S+ )?status=\d+ [^\n]*client=127.0.0.1"
)
FAILS_ON_POISON = {"FAKE": "raises", "FAKE_S": "0.005"}


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
    [inode] = [fields[9] for fields in sockets if fields[2].endswith(f":{port:04X}")]
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
    end = time.monotonic() + 10
    with contextlib.ExitStack() as stack:
        while len(clients) < len(workers_of(server)) or not clients:
            assert time.monotonic() < end, "one worker takes all connections"
            client = stack.enter_context(httpx.Client(base_url=server.url, timeout=30))
            clients.setdefault(worker_of(client, server), client)
        yield clients


def start_two(start_server: Start, fake: dict[str, str] | None, **settings: object) -> LiveServer:
    server = start_server(fake, http_workers=2, **settings)
    server.wait_for(lambda: server.text().count("Application startup complete") >= 2, 60)
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
    assert single.terminate(10) == 0


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
    expositions = [totals(client.get("/metrics").text) for client in clients.values()]
    assert expositions[0] == expositions[1]
    for (name, labels, more), value in zip(counters, before, strict=True):
        assert pair.metric(name, **labels) == value + more, name
    assert pair.metric("mae_ready") == 1
    assert pair.metric("mae_admitted_images") == pair.metric("mae_inflight_requests") == 0


def test_a_large_body_and_one_that_is_too_large(pair: LiveServer, clients: dict[int, httpx.Client]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "BMP")
    for client in clients.values():
        assert client.post("/embed", content=out.getvalue()).status_code == 200
        assert client.post("/embed", content=bytes(33_000_000)).status_code == 413
    assert pair.metric("mae_inflight_bytes") == 0


def test_a_killed_worker_is_replaced_and_other_clients_notice_nothing(start_server: Start) -> None:
    server = start_two(start_server, {"FAKE_S": "0.3"}, max_batch=4, queue_images=40)
    with one_client_each(server) as clients:
        (doomed, victim), (other, bystander) = clients.items()
        assert victim.post("/embed", content=grey(1)).status_code == 200
        assert bystander.post("/embed", content=grey(2)).status_code == 200
        time.sleep(0.6)  # a worker sends its counters four times a second

        def ask(client: httpx.Client, count: int) -> httpx.Response:
            return client.post("/embed", files=[("i", ("i", grey(n))) for n in range(count)])

        with ThreadPoolExecutor() as pool:
            lost, unharmed = pool.submit(ask, victim, 20), pool.submit(ask, bystander, 12)
            server.wait_for(lambda: server.metric("mae_queue_images") >= 16, 5)
            os.kill(doomed, signal.SIGKILL)
            assert isinstance(lost.exception(10), httpx.TransportError)
            answer = unharmed.result(10)
        assert answer.status_code == 200
        assert [vector[0] for vector in answer.json()["embeddings"]] == list(range(12))
    server.wait_for(lambda: server.text().count("Application startup complete") == 3, 30)
    assert other in workers_of(server) and doomed not in workers_of(server) and len(workers_of(server)) == 2
    for pid in workers_of(server):
        files = [target_of(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        assert not [file for file in files if file.endswith("fake_server.py")], "it has inherited a file of the engine"
    assert "has died" in server.text() and "signal 9" in server.text()
    assert server.metric("mae_requests_total", code="200") == 3, "the counts of the dead worker are lost"
    assert server.metric("mae_queue_images") == server.metric("mae_admitted_images") == 0
    assert server.metric("mae_inflight_requests") == server.metric("mae_inflight_bytes") == 0
    assert server.metric("mae_dropped_images_total", reason="abandoned") >= 4
    with one_client_each(server) as clients:
        for client in clients.values():
            assert client.post("/embed", content=grey(9)).status_code == 200
        workers = list(clients)
    server.process.kill()
    server.process.wait()
    end = time.monotonic() + 5
    while [pid for pid in workers if "service.workers" in command_of(pid)]:
        assert time.monotonic() < end, "the workers outlive the engine process"
        time.sleep(0.02)
    assert not [name for name in os.listdir("/dev/shm") if "mae" in name]


def test_the_queue_is_one(start_server: Start) -> None:
    server = start_two(start_server, {"FAKE_S": "0.2"}, max_batch=1, queue_images=4, max_images=16)
    answers = asyncio.run(post_all(server.url, [grey(n) for n in range(40)]))
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(200) + statuses.count(429) == 40 and statuses.count(200) >= 4
    assert statuses.count(200) <= 12, "each worker seems to have a queue of its own"
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "queue_full" and refused.json()["error"]["details"] == {"limit": 4}
    assert server.metric("mae_rejected_total", reason="queue_full") == statuses.count(429)
    answers = asyncio.run(post_all(server.url, [grey(n) for n in range(40)], "min_keep=0.25"))
    encoded = {n: answer.json() for n, answer in enumerate(answers) if answer.status_code == 200}
    keeps = [content["keep"] for content in encoded.values()]
    assert set(keeps) == {1, 0.5, 0.25} and len(keeps) >= 8, "two whole images, two halves and four quarters fit"
    assert all(content["embeddings"][0][0] == n for n, content in encoded.items())
    assert server.metric("mae_degraded_images_total") == sum(keep < 1 for keep in keeps)
    server.wait_for(lambda: server.metric("mae_admitted_images") == 0, 5)
    too_many = httpx.post(server.url + "/embed", files=[("i", ("i", grey(1)))] * 5)
    assert (too_many.status_code, too_many.json()["error"]["code"]) == (413, "too_many_images")

    async def leave() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=0.15) as client:
            tasks = [client.post("/embed", content=grey(n)) for n in range(4)]
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(leave())
    server.wait_for(lambda: server.metric("mae_admitted_images") == server.metric("mae_inflight_requests") == 0, 5)
    assert server.metric("mae_requests_total", code="499") >= 2
    logged = [line for line in server.text().splitlines() if "path=" in line]
    assert len(logged) == server.metric("mae_requests_total"), "the log has a line for each request, of all workers"
    assert all(ACCESS.fullmatch(line) for line in logged), "and none in the middle of another"
    assert httpx.post(server.url + "/embed", content=grey(1)).status_code == 200


def test_a_drain_answers_accepted_requests(start_server: Start) -> None:
    server = start_two(start_server, {"FAKE_S": "0.2"}, max_batch=8)

    async def load() -> tuple[list[httpx.Response], list[httpx.Response]]:
        async with many_connections(server.url) as client:
            early = [asyncio.create_task(client.post("/embed", content=grey(n))) for n in range(48)]
            while server.metric("mae_admitted_images") + server.metric("mae_batch_size_sum") < 48:
                await asyncio.sleep(0.02)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
            late = [asyncio.create_task(client.post("/embed", content=grey(n))) for n in range(10)]
            probes = await asyncio.gather(*(client.get("/readyz") for _ in range(8)))
            assert {probe.status_code for probe in probes} == {503}
            return await asyncio.gather(*early), await asyncio.gather(*late)

    early, late = asyncio.run(load())
    assert [answer.json()["embeddings"][0][0] for answer in early] == list(range(48))
    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in late} == {(503, "draining")}
    assert server.process.wait(20) == 0


def test_a_lost_engine_is_lost_everywhere(start_server: Start) -> None:
    server = start_two(start_server, {"FAKE": "fatal", "FAKE_S": "0.1", "FAKE_LOAD_S": "0.5"}, max_batch=1)
    with one_client_each(server) as clients:
        answers = asyncio.run(post_all(server.url, [grey(POISON), *(grey(n) for n in range(10))]))
        assert {answer.status_code for answer in answers} <= {200, 503}
        lost = [answer.json()["error"] for answer in answers if answer.status_code == 503]
        assert lost and {error["code"] for error in lost} == {"engine_lost"}
        for client in clients.values():
            for path in ("/livez", "/readyz"):
                answer = client.get(path)
                assert answer.status_code == 503 and "lane 0 has ended" in answer.json()["reason"]
            refused = client.post("/embed", content=grey(1))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_lost")
    assert server.process.wait(20) == 1
