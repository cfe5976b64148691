"""`mae serve` on the GPU: mixed load over HTTP, a second start, a device that is lost."""

import asyncio
import io
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.gpu.conftest import centred_cosine
from tests.live.conftest import LiveServer, Start

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def settings(
    backends: tuple[str, ...], on_gpu: bool, probe: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Of a server on the device under test, with an engine store of its own."""
    chosen: dict[str, Any] = {"weights": probe, "engine_cache": tmp_path_factory.mktemp("store")}
    chosen["compile_timeout_s"] = 0  # test_torch_modes.py compiles, once
    if on_gpu:
        return {**chosen, "backend": backends[0], "precision": "fp16"}
    return {**chosen, "backend": backends[0], "lanes": 2}


@pytest.fixture(scope="module")
def first(start_server: Start, settings: dict[str, Any]) -> tuple[LiveServer, float]:
    """A server on an empty store, and how long it took."""
    start = time.monotonic()
    server = start_server(ready=False, **settings)
    assert httpx.get(server.url + "/livez").status_code == 200
    loading = httpx.get(server.url + "/readyz")
    assert loading.status_code == 503 and loading.json()["state"] == "loading" and loading.json()["reason"]
    server.wait_until_ready(600)
    return server, time.monotonic() - start


@pytest.fixture(scope="module")
def pictures(golden: Mapping[str, np.ndarray]) -> list[bytes]:
    files = []
    for pixels in golden["images"]:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        files.append(out.getvalue())
    return files


def test_what_serves_is_what_was_asked_for(
    first: tuple[LiveServer, float], backends: tuple[str, ...], on_gpu: bool
) -> None:
    server, _ = first
    engine = httpx.get(server.url + "/info").json()["engine"]
    assert engine["backend"] == backends[0] and not engine["fallback"]
    assert engine["device"].startswith("cuda") == on_gpu
    assert engine["parity"]["cosine"] > 0.999
    if on_gpu:
        total = server.metric("mae_gpu_memory_total_bytes")
        assert 1e9 < server.metric("mae_gpu_memory_used_bytes") < total
        assert 0 <= server.metric("mae_gpu_utilization_ratio") <= 8  # a sum over the cards that are visible


def test_a_mixed_load_over_http(
    first: tuple[LiveServer, float], golden: Mapping[str, np.ndarray], pictures: list[bytes], gpu_backend: str
) -> None:
    """120 requests at once: vectors are the golden ones, and every answer is that of the same request alone."""
    server, _ = first
    requests: list[dict[str, Any]] = []
    for number in range(120):
        body = pictures[number % 8]
        kind = number % 3
        if kind == 0:
            params, accept, route = {"pool": "mean"}, "application/x-npy", "/embed"
        elif kind == 1:
            params, accept, route = {"pool": "cls", "keep": 0.25, "seed": 3}, "application/x-npy", "/embed"
        else:
            params, accept, route = {"seed": 5, "view": "reconstruction"}, "*/*", "/reconstruct"
        requests.append(
            {"method": "POST", "url": route, "params": params, "headers": {"accept": accept}, "content": body}
        )
    with httpx.Client(base_url=server.url, timeout=60) as client:
        alone = [client.request(**request) for request in requests[:24]]  # both cycles are over after 24
    before = server.metric("mae_batch_size_count"), server.metric("mae_batch_size_sum")

    async def at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(
            base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=120)
        ) as client:
            return await asyncio.gather(*(client.request(**request) for request in requests))

    together = asyncio.run(at_once())
    assert {answer.status_code for answer in (*alone, *together)} == {200}
    expected = golden["embed_mean"]
    centre = expected.mean(axis=0)
    for number, answer in enumerate(together):
        single = alone[number % 24]
        if number % 3 < 2:
            found, same = (np.load(io.BytesIO(each.content))[:, None] for each in (answer, single))
            middle = np.zeros(1)
            if number % 3 == 0:
                middle = centre
                assert centred_cosine(found, expected[number % 8][None, None], centre) > 0.9999
            assert centred_cosine(found, same, middle) > 0.9999
        else:
            found, same = (np.asarray(Image.open(io.BytesIO(each.content))).astype(int) for each in (answer, single))
            assert found.shape == (224, 224, 3) and np.abs(found - same).max() <= 2
    formed = server.metric("mae_batch_size_count") - before[0]
    assert (server.metric("mae_batch_size_sum") - before[1]) / formed > 1.2, "the requests did not share batches"
    assert server.metric("mae_engine_failures_total") == 0


def test_the_second_start_is_quick(
    first: tuple[LiveServer, float], start_server: Start, settings: dict[str, Any]
) -> None:
    """The store has the engine: nothing is built, and nothing in the store changes."""
    _, cold = first
    store: Path = settings["engine_cache"]

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}

    there = files()
    assert there or settings["backend"] == "torch", "the first start has stored nothing"
    start = time.monotonic()
    server = start_server(**settings)
    warm = time.monotonic() - start
    assert files() == there
    if settings["backend"] != "torch":
        assert warm < max(0.75 * cold, 5), f"{warm:.1f} s after {cold:.1f} s for the first"
        assert warm < 60
    assert server.terminate() == 0


def test_a_lost_device_ends_the_process(
    start_server: Start, settings: dict[str, Any], pictures: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 to what waits and to probes for a moment, then exit code 1, so that somebody starts it anew."""
    server = start_server(module="tests.gpu.doomed_server", **settings)
    assert httpx.post(server.url + "/embed", content=pictures[0], timeout=60).status_code == 200
    os.kill(server.process.pid, signal.SIGUSR1)
    answer = httpx.post(server.url + "/embed", content=pictures[0], timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_lost")
    for probe in ("/readyz", "/livez"):
        told = httpx.get(server.url + probe)
        assert told.status_code == 503 and told.json()["state"] == "lost"
    refused = httpx.post(server.url + "/embed", content=pictures[0])
    assert refused.status_code == 503
    assert server.process.wait(60) == 1
