"""The service as replicas of Ray Serve, behind its proxy."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from service.settings import InvalidSettings, Settings
from tests.cluster.replicas import build_fatal_app, build_unbuildable_app
from tests.support.clients import grey, post_all
from tests.support.fake_server import POISON
from tests.support.images import encoded
from tests.support.metrics import sample

CLIENTS = 8
SECONDS = 120


def wait_for(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


class Proxy:
    """Serve's proxy on a free port, and what runs behind it."""

    def __init__(self, ray: Any, url: str) -> None:
        self._ray = ray
        self.url = url

    def run(self, application: Any) -> None:
        """Deploys an application in place of the one that is there; returns when it is ready."""
        from ray import serve

        serve.run(application, name="mae", route_prefix="/")

    def replicas(self) -> dict[str, Any]:
        """The actors of the replicas, by name."""
        named = self._ray.util.list_named_actors(all_namespaces=True)
        names = [actor["name"] for actor in named if actor["name"].startswith("SERVE_REPLICA::mae#Mae#")]
        return {name: self._ray.get_actor(name, "serve") for name in names}

    def running(self) -> int:
        """The number of replicas that Serve counts as ready."""
        from ray import serve

        return serve.status().applications["mae"].deployments["Mae"].replica_states.get("RUNNING", 0)


@pytest.fixture(scope="module")
def proxy(ray: Any) -> Iterator[Proxy]:
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield Proxy(ray, f"http://127.0.0.1:{port}")
    serve.shutdown()


@pytest.fixture(scope="module")
def two_replicas(proxy: Proxy) -> Proxy:
    """Two replicas of the probe model."""
    from service.cluster.serve import ReplicaOptions, app

    proxy.run(app(ReplicaOptions(num_cpus=1, min_replicas=2, max_replicas=2)))
    return proxy


@pytest.fixture(scope="module")
def bodies(golden: Mapping[str, np.ndarray]) -> list[bytes]:
    return [encoded(image) for image in golden["images"]]


@contextmanager
def load(url: str, bodies: list[bytes], golden: Mapping[str, np.ndarray]) -> Iterator[Counter[str]]:
    """CLIENTS connections that embed images without a pause; what became of their requests is counted."""
    outcomes: Counter[str] = Counter()
    ended = threading.Event()

    def send(first: int) -> None:
        number = first
        with httpx.Client(base_url=url, timeout=60) as client:
            while not ended.is_set():
                number = (number + 1) % len(bodies)
                try:
                    answer = client.post("/embed", content=bodies[number])
                except httpx.TransportError:
                    outcomes["cut off"] += 1
                    continue
                if answer.status_code == 200:
                    [vector] = answer.json()["embeddings"]
                    is_right = np.allclose(vector, golden["embed_mean"][number], atol=1e-4)
                    outcomes["right" if is_right else "wrong"] += 1
                else:
                    outcomes[f"status {answer.status_code}"] += 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(send, first) for first in range(CLIENTS)]
        try:
            wait_for(lambda: outcomes.total() >= 20)
            yield outcomes
        finally:
            ended.set()
        for one in running:
            one.result()


def test_both_replicas_give_the_golden_vectors_in_the_same_bits(
    two_replicas: Proxy, bodies: list[bytes], golden: Mapping[str, np.ndarray]
) -> None:
    answers = [asyncio.run(post_all(two_replicas.url, bodies, "pool=cls")) for _ in range(4)]
    texts = {tuple(answer.json()["embeddings"][0]) for each in answers for answer in each}
    assert len(texts) == len(bodies)
    for answer, expected in zip(answers[0], golden["embed_cls"], strict=True):
        np.testing.assert_allclose(answer.json()["embeddings"][0], expected, atol=1e-4)


def test_errors_and_other_routes_are_those_of_the_service(two_replicas: Proxy, bodies: list[bytes]) -> None:
    with httpx.Client(base_url=two_replicas.url, timeout=60) as client:
        picture = client.post("/reconstruct?seed=7", content=bodies[0], headers={"X-Request-ID": "one"})
        assert picture.headers["content-type"] == "image/png"
        assert set(picture.headers.get_list("x-request-id")) == {"one"}
        assert client.post("/embed", content=b"no image").json()["error"]["code"] == "undecodable_image"
        too_large = client.post("/embed", content=bytes(33_000_000))
        assert (too_large.status_code, too_large.json()["error"]["code"]) == (413, "body_too_large")
        assert client.get("/readyz").json()["ready"] is True
        assert client.get("/info").json()["engine"]["lanes"] == 1  # of the two CPUs that the cluster has


def test_metrics_of_every_replica_are_at_the_port_of_its_node(two_replicas: Proxy, ray: Any) -> None:
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    replicas = {name.rpartition("#")[2] for name in two_replicas.replicas()}

    def exported(name: str, **labels: str) -> list[float]:
        text = httpx.get(url).text
        return [sample(text, name, application="mae", replica=replica, **labels) for replica in replicas]

    wait_for(lambda: exported("ray_mae_ready") == [1, 1])
    assert sum(exported("ray_mae_requests_total", endpoint="/classify")) == 0
    for _ in range(20):  # the probe model has no head
        assert httpx.post(f"{two_replicas.url}/classify", content=b"").status_code == 404
    wait_for(lambda: sum(exported("ray_mae_requests_total", endpoint="/classify")) == 20)


def test_a_replica_that_is_killed_costs_only_the_requests_that_it_held(
    two_replicas: Proxy, ray: Any, bodies: list[bytes], golden: Mapping[str, np.ndarray]
) -> None:
    with load(two_replicas.url, bodies, golden) as outcomes:
        victim, actor = next(iter(two_replicas.replicas().items()))
        ray.kill(actor)
        wait_for(lambda: victim not in two_replicas.replicas() and two_replicas.running() == 2)
        after = outcomes["right"]
        wait_for(lambda: outcomes["right"] >= after + 20)
    right = outcomes.pop("right")
    assert outcomes["wrong"] == 0
    assert outcomes.total() <= CLIENTS, outcomes
    assert right > 40


def test_an_update_replaces_the_replicas_without_a_failed_request(
    two_replicas: Proxy, bodies: list[bytes], golden: Mapping[str, np.ndarray]
) -> None:
    from service.cluster.serve import ReplicaOptions, app

    old = two_replicas.replicas()
    with load(two_replicas.url, bodies, golden) as outcomes:
        two_replicas.run(app(ReplicaOptions(num_cpus=0.9, min_replicas=2, max_replicas=2)))
        wait_for(lambda: two_replicas.running() == 2 and not old.keys() & two_replicas.replicas().keys())
    assert set(outcomes) == {"right"}


def fake(proxy: Proxy, build: Callable[[], FastAPI]) -> None:
    """Deploys one replica with a fake engine."""
    from service.cluster.serve import ReplicaOptions, build_application

    proxy.run(build_application(Settings(), ReplicaOptions(num_cpus=1, max_replicas=1), build))


def test_a_lost_engine_is_replaced(proxy: Proxy) -> None:
    fake(proxy, build_fatal_app)
    [lost] = proxy.replicas()
    [answer] = asyncio.run(post_all(proxy.url, [grey(POISON)]))
    assert answer.json()["error"]["code"] == "engine_lost"
    wait_for(lambda: lost not in proxy.replicas() and proxy.running() == 1)
    [answer] = asyncio.run(post_all(proxy.url, [grey(40)]))
    assert set(answer.json()["embeddings"][0]) == {40}


def test_an_engine_that_cannot_be_built_fails_the_deployment_with_the_reason(proxy: Proxy) -> None:
    from ray import serve

    with pytest.raises(RuntimeError):
        fake(proxy, build_unbuildable_app)
    assert "out of memory, say" in serve.status().applications["mae"].deployments["Mae"].message


def test_http_workers_are_refused() -> None:
    from service.cluster.serve import ReplicaOptions, build_application

    with pytest.raises(InvalidSettings, match="HTTP_WORKERS"):
        build_application(Settings(http_workers=2), ReplicaOptions(), build_fatal_app)
