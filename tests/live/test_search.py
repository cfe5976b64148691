"""`mae index`, then `mae serve --index` with two HTTP workers: /search finds what NumPy finds among all vectors."""

import asyncio
import io
import os
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.cli.main import main
from tests.live.conftest import LiveServer, Start

COUNT = 24


def index_images(folder: Path, index: Path, engine_cache: Path, weights: Path) -> None:
    """Runs `mae index` in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        for name in [name for name in os.environ if name.startswith("MAE_")]:
            patch.delenv(name)
        settings = ("--weights", weights, "--engine-cache", engine_cache, "--precision", "fp32", "--max-batch", "4")
        main([str(word) for word in ("index", folder, "-o", index, "--thumbnails", *settings)])
    assert not ended.value.code


@pytest.fixture(scope="module")
def crops(photographs: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with parts of photographs."""
    folder = tmp_path_factory.mktemp("crops")
    draw = np.random.default_rng(0)
    for number in range(COUNT):
        photograph = list(photographs.values())[number % len(photographs)]
        left, top = draw.integers(0, 150, 2).tolist()
        photograph.crop((left, top, left + 150, top + 150)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def index(crops: Path, tmp_path_factory: pytest.TempPathFactory, engine_cache: Path, probe: Path) -> Path:
    path = tmp_path_factory.mktemp("indexes") / "crops.lance"
    index_images(crops, path, engine_cache, probe)
    return path


@pytest.fixture(scope="module")
def searching(start_server: Start, index: Path, probe: Path) -> Iterator[LiveServer]:
    """Two workers; in the end the server drains."""
    server = start_server(weights=probe, max_batch=4, http_workers=2, index=index)
    yield server
    assert server.terminate() == 0


def embed(client: httpx.Client, files: list[Path]) -> np.ndarray:
    """The vectors of images in the space of the index, scaled to length 1."""
    answer = client.post("/embed", files=[("image", (file.name, file.read_bytes())) for file in files]).json()
    assert answer["space"] == client.get("/info").json()["index"]["space"]
    vectors = np.array(answer["embeddings"])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_many_searches_at_once_find_what_exact_search_finds(searching: LiveServer, crops: Path) -> None:
    files = sorted(crops.iterdir())
    with httpx.Client(base_url=searching.url) as client:
        vectors = embed(client, files)
    cosines = vectors @ vectors.T

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=searching.url, timeout=60) as client:
            return await asyncio.gather(*(client.post("/search?k=5", content=file.read_bytes()) for file in files))

    for row, answer in enumerate(asyncio.run(ask())):
        assert answer.status_code == 200, answer.text
        neighbours = answer.json()["searches"][0]["neighbours"]
        order = np.argsort(-cosines[row], kind="stable")[:5]
        assert [one["name"] for one in neighbours] == [files[other].name for other in order]
        found = [one["similarity"] for one in neighbours]
        assert np.allclose(found, cosines[row][order], atol=1e-5)
    searching.wait_for_metric("mae_requests_total", len(files), endpoint="/search", code="200")
    searching.wait_for_metric("mae_stage_duration_seconds_count", len(files), stage="search")
    searching.wait_for_metric("mae_searching_images", 0)
    assert searching.metric("mae_index_rows") == COUNT


def test_pictures_come_from_the_index(searching: LiveServer, crops: Path) -> None:
    content = (crops / "03.png").read_bytes()
    answer = httpx.post(searching.url + "/search?k=1&thumbnails=true", content=content).json()
    [neighbour] = answer["searches"][0]["neighbours"]
    picture = Image.open(io.BytesIO(b64decode(neighbour["thumbnail"].removeprefix("data:image/jpeg;base64,"))))
    original = Image.open(crops / "03.png").convert("RGB").resize(picture.size)
    assert picture.format == "JPEG"
    assert np.abs(np.asarray(picture, float) - np.asarray(original, float)).mean() < 8


def test_an_image_that_is_indexed_while_the_server_runs_is_found(
    searching: LiveServer, crops: Path, index: Path, engine_cache: Path, probe: Path
) -> None:
    Image.radial_gradient("L").save(crops / "new.png")
    index_images(crops, index, engine_cache, probe)
    content = (crops / "new.png").read_bytes()

    def nearest() -> dict[str, Any]:
        [neighbour] = httpx.post(searching.url + "/search?k=1", content=content).json()["searches"][0]["neighbours"]
        return dict(neighbour)

    searching.wait_for(lambda: nearest()["name"] == "new.png")
    assert nearest()["similarity"] == pytest.approx(1, abs=1e-5)
    searching.wait_for(lambda: httpx.get(searching.url + "/info").json()["index"]["rows"] == COUNT + 1)
