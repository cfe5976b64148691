"""The golden numbers, which another implementation wrote, through HTTP."""

import base64
import io
from pathlib import Path

import httpx
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from tests.live.conftest import Start
from tests.support.images import encoded


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_embeddings(client: httpx.Client, golden, pool: str) -> None:
    files = [("image", (f"{n}.png", encoded(image), "image/png")) for n, image in enumerate(golden["images"])]
    answer = client.post("/embed", params={"pool": pool}, files=files).json()
    np.testing.assert_allclose(answer["embeddings"], golden[f"embed_{pool}"], atol=1e-4)
    assert (answer["count"], answer["dim"], answer["pool"]) == (8, 192, pool)


def test_mean_of_the_tokens_is_the_mean_embedding(client: httpx.Client, golden) -> None:
    body = encoded(golden["images"][1])
    answer = client.post("/embed?pool=tokens", content=body, headers={"accept": "application/x-npy"})
    tokens = np.load(io.BytesIO(answer.content))
    assert tokens.shape == (1, 196, 192)
    np.testing.assert_allclose(tokens[0].mean(axis=0), golden["embed_mean"][1], atol=1e-4)


@pytest.mark.parametrize("number", range(8))
def test_reconstructions(client: httpx.Client, golden, number: int) -> None:
    image, mask = golden["images"][number], golden["mask"][number]
    patches = ",".join(map(str, np.flatnonzero(mask)))
    answer = client.post("/reconstruct", params={"patches": patches, "view": "reconstruction"}, content=encoded(image))
    assert answer.headers["content-type"] == "image/png"
    assert np.abs(decoded(answer.content) - golden["reconstruction"][number]).max() <= 1
    assert float(answer.headers["x-mae-loss"]) == pytest.approx(golden["loss"][number], abs=1e-4)
    assert float(answer.headers["x-mae-mask-ratio"]) == 0.75


def test_composite_keeps_what_is_visible(client: httpx.Client, golden) -> None:
    image, mask = golden["images"][0], golden["mask"][0]
    removed = mask.reshape(14, 14).repeat(16, 0).repeat(16, 1).astype(bool)
    body = {"images": [base64.b64encode(encoded(image)).decode()]}
    patches = ",".join(map(str, np.flatnonzero(mask)))
    answer = client.post(f"/reconstruct?patches={patches}", json=body, headers={"accept": "application/json"}).json()
    picture = decoded(base64.b64decode(answer["reconstructions"][0]["png"]))
    assert (picture[~removed] == image[~removed]).all()
    assert np.abs(picture[removed] - golden["reconstruction"][0][removed]).max() <= 1
    assert answer["mask"] == mask.tolist()
    assert answer["reconstructions"][0]["loss"] == pytest.approx(golden["loss"][0], abs=1e-4)


def test_a_mask_image_removes_the_same_patches(client: httpx.Client, golden) -> None:
    image, mask = golden["images"][2], golden["mask"][2]
    white = mask.reshape(14, 14).repeat(16, 0).repeat(16, 1) * np.uint8(255)
    files = {"image": ("i.png", encoded(image)), "mask": ("m.png", encoded(white))}
    answer = client.post("/reconstruct?view=reconstruction", files=files)
    assert np.abs(decoded(answer.content) - golden["reconstruction"][2]).max() <= 1
    assert "x-mae-seed" not in answer.headers


def test_a_facebookresearch_checkpoint_serves_the_same_numbers(
    start_server: Start, golden, probe: Path, tmp_path: Path
) -> None:
    torch.save({"model": safetensors.torch.load_file(probe)}, tmp_path / "probe.pth")
    server = start_server(weights=tmp_path / "probe.pth", backend="torch")  # OpenVINO would convert for long
    with httpx.Client(base_url=server.url, timeout=60) as client:
        info = client.get("/info").json()["engine"]
        assert (info["backend"], info["layout"]) == ("torch", "facebookresearch")
        vectors = client.post("/embed?pool=cls", content=encoded(golden["images"][4])).json()["embeddings"]
        np.testing.assert_allclose(vectors[0], golden["embed_cls"][4], atol=1e-4)
        patches = ",".join(map(str, np.flatnonzero(golden["mask"][4])))
        params = {"patches": patches, "view": "reconstruction"}
        answer = client.post("/reconstruct", params=params, content=encoded(golden["images"][4]))
        assert np.abs(decoded(answer.content) - golden["reconstruction"][4]).max() <= 1
        assert float(answer.headers["x-mae-loss"]) == pytest.approx(golden["loss"][4], abs=1e-4)
