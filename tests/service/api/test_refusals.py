"""The order in which inference routes refuse, and that OpenAPI lists what they answer: requests with several faults."""

import asyncio
import io
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from model.checkpoints.heads import Head, Heads
from model.checkpoints.native import HeadConfig
from model.engines.base import ServedModel
from service import errors
from service.api.app import ROUTERS, create_app
from service.api.fast_path import inference_routes
from service.api.routes import anomaly, classify, embed, explain, reconstruct, sagemaker, search
from service.error_formats import error_format
from service.errors import (
    ClientGone,
    ImagesOnly,
    MethodNotAllowed,
    ModelNotFound,
    NoDecoder,
    NoHead,
    NoIndex,
    NotAcceptable,
    NotFound,
    NotServed,
    SearchFailed,
    ServiceError,
)
from service.settings import Settings
from tests.support.engines import SMALL, FakeEngine
from tests.support.indexes import write_index

MB = 1_000_000
ORDER = ("key", "query", "admission", "lacks", "accept", "length", "body", "images", "mask")
"""Faults, in the order in which every route refuses them."""
UNREAD = ORDER[:6]
REFUSALS = {
    "key": (401, "unauthorized", {}),
    "query": (422, "invalid_parameter", {"parameter": "unknown"}),
    "admission": (503, "draining", {}),
    "accept": (406, "not_acceptable", None),
    "length": (413, "body_too_large", {"limit": MB}),
    "body": (400, "malformed_body", {}),
    "images": (400, "undecodable_image", {"image": 0}),
    "mask": (422, "invalid_parameter", {"parameter": "mask"}),
}


@dataclass(frozen=True)
class Lack:
    """A request to `route` that asks with `query` for something that the poor model lacks, and its refusal."""

    route: str
    query: str
    refusal: tuple[int, str, dict[str, Any]]


DRAWN = ("/reconstruct", "/anomaly")
"""The routes that need a decoder."""
CLASSIFYING = ("/classify", "/explain")
"""The routes that need a head."""
LACKS = (
    Lack("/embed", "whiten=true", (422, "invalid_parameter", {"parameter": "whiten"})),
    Lack("/embed", "pool=cls", (422, "invalid_parameter", {"parameter": "pool"})),
    Lack("/embed", "keep=0.01", (422, "invalid_parameter", {"parameter": "keep"})),
    Lack("/embed", "patches=4", (422, "invalid_parameter", {"parameter": "patches"})),
    Lack("/embed", "dimensions=4", (422, "invalid_parameter", {"parameter": "dimensions"})),
    Lack("/invocations", "pool=cls", (422, "invalid_parameter", {"parameter": "pool"})),
    Lack("/classify", "", (404, "no_head", {})),
    Lack("/reconstruct", "", (404, "no_decoder", {})),
    Lack("/explain", "target=class", (404, "no_head", {})),
    Lack("/anomaly", "", (404, "no_decoder", {})),
    Lack("/anomaly", "method=features", (422, "invalid_parameter", {"parameter": "method"})),
    Lack("/search", "", (404, "no_index", {})),
)


def encoded(size: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (size, size), 255).save(out, "PNG")
    return out.getvalue()


class Rich(FakeEngine):
    """A model with a head and a decoder, which is served with an index."""

    def __init__(self) -> None:
        super().__init__()
        head = HeadConfig(pool="mean", classes=("night", "day"))
        self.heads = Heads(Head(head, np.zeros((2, 8), np.float32), np.zeros(2, np.float32)))
        self.info = self.info.model_copy(update={"head": head})


class Poor(FakeEngine):
    """A model without a head, a decoder, whitening and a cls token, which is served without an index."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = Heads()
        config = SMALL.model_copy(update={"family": "resnet", "decoder_depth": 0})
        self.info = self.info.model_copy(update={"config": config})


def serve(engine: Rich | Poor, index: Path | None = None) -> Iterator[TestClient]:
    settings = Settings(api_keys=("right",), max_body_mb=1, max_inflight_mb=4, index=index)
    with TestClient(create_app(settings, lambda settings, progress: ServedModel(engine, engine.heads))) as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        yield client


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    path = tmp_path_factory.mktemp("indexes") / "one.lance"
    write_index(path, {"a.png": np.ones(8, np.float32)}, Rich().info)
    yield from serve(Rich(), path)


@pytest.fixture(scope="module")
def poor() -> Iterator[TestClient]:
    yield from serve(Poor())


def faulty(lack: Lack, faults: tuple[str, ...]) -> dict[str, Any]:
    """A request to `lack.route` with `faults`, for httpx."""
    query = [*([lack.query] if "lacks" in faults else []), *(["unknown=1"] if "query" in faults else [])]
    parts = [("image", b"no image" if "images" in faults else encoded(32))]
    if "mask" in faults:
        parts.append(("mask", encoded(9)))
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n\r\n%s\r\n' % (name.encode(), content)
        for name, content in parts
    )
    body += b"" if "body" in faults else b"--x--\r\n"
    body += bytes(MB) if "length" in faults else b""
    return {
        "method": "POST",
        "url": lack.route + "?" + "&".join(query),
        "headers": {
            "x-api-key": "wrong" if "key" in faults else "right",
            "accept": "text/html" if "accept" in faults else "*/*",
            "content-type": "multipart/form-data; boundary=x",
            "content-length": str(len(body)),
        },
        "content": body,
    }


def expected(lack: Lack, fault: str) -> tuple[int, str, dict[str, Any] | None]:
    return lack.refusal if fault == "lacks" else REFUSALS[fault]


def require_refusal(response: httpx.Response, lack: Lack, faults: tuple[str, ...]) -> None:
    status, code, details = expected(lack, faults[0])
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), faults
    assert details is None or error["details"] == details, faults


def combinations(route: str) -> list[tuple[str, ...]]:
    """Each fault alone, every pair, and each fault with all that come after it."""
    possible = [fault for fault in ORDER if fault != "mask" or route in ("/embed", "/invocations", "/reconstruct")]
    pairs = itertools.combinations(possible, 2)
    return [*((fault,) for fault in possible), *pairs, *(tuple(possible[n:]) for n in range(len(possible)))]


def test_every_route_with_the_three_bodies_is_in_the_table() -> None:
    """The routes of other protocols have bodies, and an order within these, of their own."""
    modules = (embed, classify, reconstruct, explain, anomaly, search, sagemaker)
    routes = inference_routes([module.router for module in modules])
    assert {route.path for route in routes} == {lack.route for lack in LACKS}


@pytest.mark.parametrize("lack", LACKS, ids=lambda lack: f"{lack.route}?{lack.query}")
def test_the_first_fault_in_the_order_is_refused(rich: TestClient, poor: TestClient, lack: Lack) -> None:
    declared = rich.get("/openapi.json").json()["paths"][lack.route]["post"]["responses"]
    for faults in combinations(lack.route):
        client = poor if "lacks" in faults else rich
        service = client.app.state.service  # type: ignore[attr-defined]
        service._state.change("draining" if "admission" in faults else "ready")
        try:
            response = client.request(**faulty(lack, faults))
        finally:
            service._state.change("ready")
        require_refusal(response, lack, faults)
        assert str(response.status_code) in declared


@pytest.mark.parametrize("lack", LACKS, ids=lambda lack: f"{lack.route}?{lack.query}")
def test_what_can_be_refused_before_the_body_is_refused_unread(rich: TestClient, poor: TestClient, lack: Lack) -> None:
    read: list[str] = []

    async def refuse(app: FastAPI, fault: str) -> httpx.Response:
        request = faulty(lack, (fault,))
        content = request["content"]

        async def chunks() -> AsyncIterator[bytes]:
            read.append(fault)
            yield content

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.request(**{**request, "content": chunks()})

    for fault in UNREAD:
        if fault != "admission":  # for the sake of the client, a body is read to its end before a connection is closed
            client = poor if fault == "lacks" else rich
            require_refusal(asyncio.run(refuse(client.app, fault)), lack, (fault,))  # type: ignore[arg-type]
    assert read == []


ACCEPT_AND_COUNT = [
    ("application/zip", 1, 406),
    ("image/png", 1, 200),
    ("image/png", 2, 406),
    ("application/zip", 2, 200),
    ("application/json", 1, 200),
    ("application/json", 2, 200),
]


@pytest.mark.parametrize(("accept", "count", "status"), ACCEPT_AND_COUNT)
def test_where_the_number_of_images_decides_accept_comes_between_body_and_images(
    rich: TestClient, accept: str, count: int, status: int
) -> None:
    def post(images: list[bytes], **mask: bytes) -> httpx.Response:
        files = [*(("image", ("f", image)) for image in images), *mask.items()]
        return rich.post("/reconstruct", files=files, headers={"x-api-key": "right", "accept": accept})

    assert post([encoded(32)] * count).status_code == status
    assert post([encoded(32)] * (count - 1) + [b""]).status_code == 400
    for several_faults in (post([b"no image"] * count), post([encoded(32)] * count, mask=encoded(9))):
        assert (several_faults.status_code == 406) == (status == 406)


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("patches=4", "patches"),
        ("patches=0,1,2,3", "patches"),
        ("mask_ratio=0", "mask_ratio"),
        ("mask_ratio=1&strategy=block", "mask_ratio"),
        ("patches=1&seed=1", "seed"),
    ],
)
def test_a_mask_that_the_query_describes_is_refused_before_the_body(
    rich: TestClient, query: str, parameter: str
) -> None:
    lack = Lack("/reconstruct", query, (422, "invalid_parameter", {"parameter": parameter}))
    for faults in (("lacks",), ("lacks", "accept"), ("lacks", "length"), ("lacks", "body"), ("lacks", "images")):
        require_refusal(rich.request(**faulty(lack, faults)), lack, faults)


@pytest.mark.parametrize(
    "route",
    [route.path_format for route in inference_routes(ROUTERS) if "POST" in route.methods and route.include_in_schema],
)
def test_openapi_lists_every_error_that_a_route_can_answer(rich: TestClient, route: str) -> None:
    lenient = {ImagesOnly, ModelNotFound}
    own = {lacked for lacked, routes in ((NoHead, CLASSIFYING), (NoDecoder, DRAWN)) if route in routes} | {
        "/search": {NoIndex, SearchFailed},
        "/v1/embeddings": lenient,
        "/v2/embed": lenient,
        "/v2/models/{name}/infer": {NoHead, NoDecoder, ModelNotFound},
    }.get(route, set())
    elsewhere = {ClientGone, NoHead, NoDecoder, NoIndex, NotFound, NotServed, MethodNotAllowed, SearchFailed, *lenient}
    possible = set(ServiceError.__subclasses__()) - elsewhere | own
    if error_format(route) == "open-inference":
        possible.discard(NotAcceptable)  # the request says in what form it wants the answer
    responses = rich.get("/openapi.json").json()["paths"][route]["post"]["responses"]
    listed = {int(status): response["description"] for status, response in responses.items() if status != "200"}
    assert set(listed) == {kind.status for kind in possible}
    for kind in possible:
        assert f"`{kind.code}`" in listed[kind.status]
    assert len(possible) > 15 and errors.InferenceFailed in possible
