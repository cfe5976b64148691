"""The engine that answers at once: alone, and behind the real server."""

import io

import httpx
import numpy as np
import pytest
from PIL import Image

from model.engines.base import EngineInfo
from service.benchmark.null_engine import NullEngine
from service.benchmark.processes import ServerProcess
from service.settings import InvalidSettings, load_settings


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_shapes_of_the_protocol(info: EngineInfo, batch: int) -> None:
    engine = NullEngine(info)
    assert (engine.info.lanes, engine.info.preferred_batch) == (2, 4)
    patches = np.random.default_rng(0).integers(0, 256, (batch, 196, 768), dtype=np.uint8)
    visible_indices = np.zeros((batch, 49), np.int32)
    vectors = engine.embed(0, patches[:, :49], visible_indices)
    tokens = engine.tokens(1, patches[:, :49], visible_indices)
    pixels, error = engine.reconstruct(0, patches, visible_indices)
    assert (vectors.shape, vectors.dtype) == ((batch, 2, 192), np.float32)
    assert (tokens.shape, tokens.dtype) == ((batch, 49, 192), np.float32)
    assert (error.shape, error.dtype) == ((batch, 196), np.float32)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels, patches)
    assert np.isfinite(vectors).all() and len(np.unique(vectors)) == vectors.size, "numbers as long as real ones"


def test_the_real_server_around_it(null_server: ServerProcess) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8))
    out = io.BytesIO()
    picture.save(out, "PNG")
    with httpx.Client(base_url=null_server.url) as client:
        raw = client.post("/embed", content=out.getvalue())
        form = client.post("/embed?pool=tokens", files={"image": out.getvalue()})
        painted = client.post("/reconstruct", content=out.getvalue())
        broken = client.post("/embed", content=b"no image")
    assert (raw.json()["dim"], np.shape(raw.json()["embeddings"])) == (192, (1, 192))
    assert np.shape(form.json()["embeddings"]) == (1, 196, 192)
    assert Image.open(io.BytesIO(painted.content)).size == (224, 224)
    assert broken.status_code == 400, "decoding is real"


@pytest.mark.parametrize("backend", ["null", "none", "service.benchmark.null_engine"])
def test_no_setting_leads_to_it(backend: str) -> None:
    with pytest.raises(InvalidSettings):
        load_settings(backend=backend)
