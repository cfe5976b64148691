"""The requests of the soak: each has one right answer, whatever else the server does meanwhile."""

from __future__ import annotations

import base64
import functools
import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.attacks.client import FORM, form

ROOT = Path(__file__).parents[3]
KEY = "soak-key"
RAW, JSON = "application/octet-stream", "application/json"


@dataclass(frozen=True)
class Request:
    """A request as it goes over the wire; its `path` names it."""

    path: str
    content: bytes


def build(path: str, body: bytes | None = None, kind: str = RAW, *headers: str, chunked: bool = False) -> Request:
    """A POST of `body`, or a GET, with the key."""
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "Host: x", f"X-API-Key: {KEY}", *headers]
    if body is None:
        return Request(path, "\r\n".join([*lines, "", ""]).encode())
    lines += [f"Content-Type: {kind}", "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"]
    if chunked:
        pieces = [body[start : start + 5000] for start in range(0, len(body), 5000)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return Request(path, "\r\n".join([*lines, "", ""]).encode() + body)


@functools.cache
def photographs() -> list[bytes]:
    """Photographs in every format and mode that is served: 16 files of some kilobytes."""
    paths = [ROOT / "tests/data/chelsea.jpg", *sorted((ROOT / "service/page/examples").glob("*.jpg"))]
    pictures = [Image.open(path).convert("RGB") for path in paths]
    for picture in pictures:
        picture.thumbnail((320, 320))
    first, second, third = pictures[:3]
    alpha = second.copy()
    alpha.putalpha(Image.radial_gradient("L").resize(second.size))
    deep = Image.fromarray(np.asarray(third.convert("L")).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    saved = [
        (first, "JPEG", {"progressive": True}),
        (second, "JPEG", {"exif": turned}),
        (third.convert("CMYK"), "JPEG", {}),
        (first.convert("L"), "JPEG", {}),
        (second, "PNG", {}),
        (first.quantize(64), "PNG", {}),
        (alpha, "PNG", {}),
        (deep, "PNG", {}),
        (third, "WEBP", {"quality": 80}),
        (first.quantize(64), "GIF", {}),
        (third, "BMP", {}),
        (second, "TIFF", {"compression": "tiff_lzw"}),
    ]
    files = [paths[0].read_bytes()] + [path.read_bytes() for path in paths[1:4]]
    for picture, kind, options in saved:
        picture.save(out := io.BytesIO(), kind, **options)  # type: ignore[arg-type]
        files.append(out.getvalue())
    return files


def fixed_requests() -> list[Request]:
    """Requests to all routes, by every kind of body and with 1 to 5 images; the same list each time."""
    draw, files = random.Random(7), photographs()
    texts = [base64.b64encode(data).decode() for data in files]

    def some(count: int) -> list[bytes]:
        return draw.sample(files, count)

    def as_json(count: int) -> bytes:
        return json.dumps({"images": [base64.b64encode(data).decode() for data in some(count)]}).encode()

    npy = "Accept: application/x-npy"
    made = [build("/embed", data, chunked=number % 4 == 3) for number, data in enumerate(files)]
    made += [
        build("/embed?pool=cls&normalize=true", form(some(2)), FORM),
        build("/embed?pool=tokens", files[0], RAW, npy),
        build("/embed?pool=tokens&keep=0.25&seed=3", form(some(3)), FORM, npy),
        build("/embed?whiten=true", as_json(3), JSON),
        build("/embed?dimensions=32&dtype=int8", form(some(5)), FORM),
        build("/embed?dimensions=64&dtype=binary&encoding=base64", as_json(2), JSON),
        build("/embed?dtype=float16", form(some(4)), FORM, "Accept: application/octet-stream"),
        build("/embed?patches=60,61,62,74,75,76,88,89,90", files[1]),
        build("/embed?on_error=skip", form([files[2], b"no image", files[5]]), FORM),
    ]
    made += [
        build(f"/embed?keep={keep}&seed={seed}", files[seed], RAW, npy)
        for seed, keep in enumerate((0.1, 0.3, 0.5, 0.7, 0.9))
    ]
    ratios, views = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9), ("composite", "reconstruction", "masked", "panel", "error")
    for number, ratio in enumerate(ratios):
        for strategy in ("random", "block", "grid"):
            query = f"mask_ratio={ratio}&strategy={strategy}&seed={number}&view={views[number % len(views)]}"
            made.append(build(f"/reconstruct?{query}", draw.choice(files)))
    mask = Image.new("L", Image.open(io.BytesIO(files[0])).size)
    mask.paste(255, (0, 0, mask.width // 2, mask.height // 2))
    mask.save(drawn := io.BytesIO(), "PNG")
    made += [
        build("/reconstruct", form([files[0]], drawn.getvalue()), FORM),
        build("/embed", form([files[0]], drawn.getvalue()), FORM),
        build("/reconstruct?seed=5", form(some(3)), FORM, "Accept: application/zip"),
        build("/reconstruct?seed=6", as_json(2), JSON),
        build("/reconstruct?seed=7&draws=8&view=spread", files[3]),
        build("/reconstruct?patches=3,17,42", files[4], RAW, "Accept: application/json"),
        build("/explain?seed=7&passes=16", form(some(2)), FORM),
        build("/anomaly?seed=7", files[2]),
        build("/anomaly?seed=8&view=heatmap", form(some(2)), FORM, "Accept: application/json"),
        build("/classify", files[0]),
        build("/search", files[0]),
        build("/embed?unknown=1", files[0]),
        build("/embed", b"no image"),
    ]
    uri = "data:image/jpeg;base64," + texts[0]
    cohere = {"model": "mae_tiny", "input_type": "image", "images": [uri], "embedding_types": ["float", "int8"]}
    tensor = {"name": "image", "datatype": "BYTES", "shape": [2, 1], "data": texts[:2]}
    made += [
        build("/v1/embeddings", json.dumps({"model": "mae_tiny", "input": [uri, texts[4]]}).encode(), JSON),
        build("/v1/embeddings", json.dumps({"input": uri, "encoding_format": "base64"}).encode(), JSON),
        build("/v2/embed", json.dumps(cohere).encode(), JSON),
        build("/v2/models/embed/infer", json.dumps({"inputs": [tensor]}).encode(), JSON),
        build("/v2/models/tokens/infer", files[1], RAW, "Inference-Header-Content-Length: 0"),
        build(
            "/v2/models/reconstruct/infer",
            json.dumps({"inputs": [tensor], "parameters": {"seed": 7, "mask_ratio": 0.75}}).encode(),
            JSON,
        ),
        build("/invocations?pool=cls", files[6]),
        build("/", None, RAW, "Accept: text/html"),
        build("/docs"),
        build("/openapi.json"),
        build("/livez"),
        build("/info"),
        build("/v1/models"),
        build("/v2"),
        build("/v2/models/embed"),
        build("/v2/models/embed/config"),
        build("/no-such-route"),
    ]
    return made


def changing_requests() -> list[Request]:
    """Requests whose answers differ each time: masks and patches that the server draws, metrics and statistics."""
    files = photographs()
    return [
        build("/reconstruct", files[0]),
        build("/reconstruct?mask_ratio=0.6&strategy=block", files[5]),
        build("/embed?keep=0.4", files[1]),
        build("/embed?keep=1&min_keep=0.25", files[2]),
        build("/metrics"),
        build("/readyz"),
        build("/v2/models/stats"),
    ]
