"""What the fuzzing of parsers begins with: requests, tensors, weights, vectors and archives."""

from __future__ import annotations

import base64
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import safetensors.numpy
import torch

from model.checkpoints.checkpoint import load
from model.config import Preprocessing
from service.cli.vector_files.formats import format_of
from service.cli.vector_files.space import VectorRecord, VectorSpace
from tests.support.engines import write_narrow
from tests.support.image_files import png_file

IMAGE = png_file(np.zeros((2, 2), np.uint8))
SPACE = VectorSpace(
    space="word",
    model="a@b",
    precision="fp32",
    computes="fp32",
    image_size=32,
    preprocessing=Preprocessing(),
    pool="mean",
    normalize=False,
    keep=1.0,
    dim=3,
    grid=(2, 2),
)
RECORDS = [VectorRecord(f"{n}.jpg", np.full(3, n, np.float32), f"/a/{n}.jpg", None, n, n) for n in range(3)]
TINY = {"image_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "decoder_embed_dim": 4}
"""A model of a few kilobytes, in place of `NARROW`'s sizes."""
ROUTES = (
    ("POST", "/embed"),
    ("POST", "/reconstruct"),
    ("POST", "/classify"),
    ("POST", "/explain"),
    ("POST", "/anomaly"),
    ("POST", "/search"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v2/embed"),
    ("POST", "/v2/models/embed/infer"),
    ("POST", "/v2/models/reconstruct/infer"),
    ("GET", "/v1/models"),
    ("GET", "/v2/models/embed/stats"),
    ("GET", "/info"),
    ("POST", "/invocations"),
    ("POST", "/predict"),
)
FOLDER_CONFIGS: tuple[dict[str, Any], ...] = (
    {
        "model_type": "vit_mae",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "image_size": 32,
        "patch_size": 8,
        "decoder_hidden_size": 16,
        "decoder_num_attention_heads": 2,
        "decoder_num_hidden_layers": 1,
        "decoder_intermediate_size": 64,
        "layer_norm_eps": 1e-6,
        "id2label": {"0": "a"},
    },
    {
        "architecture": "vit_tiny_patch8_32",
        "num_classes": 0,
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "mean": [0.5, 0.5, 0.5],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
        },
        "model_args": {"num_heads": 2},
    },
)


def form(*parts: tuple[str, str, bytes]) -> bytes:
    """A multipart body with the boundary x."""
    head = b'--x\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\nContent-Type: image/png\r\n\r\n%s\r\n'
    return b"".join(head % (name.encode(), file.encode(), data) for name, file, data in parts) + b"--x--\r\n"


def archive() -> bytes:
    """A tar of three members, of which one has a long name."""
    with tarfile.open(fileobj=(out := io.BytesIO()), mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.png", "b" * 120 + ".png", "ä.png"):
            info = tarfile.TarInfo(name)
            info.size = len(IMAGE)
            tar.addfile(info, io.BytesIO(IMAGE))
    return out.getvalue()


def request_seeds(wire: bool) -> list[bytes]:
    body = form(("image", "a.png", IMAGE))
    form_type = b"Content-Type: multipart/form-data; boundary=x"
    text = base64.b64encode(IMAGE).decode()
    uri = f"data:image/png;base64,{text}"
    json_body = orjson.dumps({"input": [uri], "model": "fake", "encoding_format": "float"})
    cohere = {"model": "fake", "images": [uri], "input_type": "image", "embedding_types": ["float", "int8"]}
    instances = {"instances": [{"b64": text}], "parameters": {"pool": "cls"}}
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    infer = orjson.dumps({"id": "7", "inputs": [tensor], "outputs": [{"name": "embedding"}]})
    as_json = b"Content-Type: application/json"
    cases = [
        (0, b"pool=tokens&normalize=true&encoding=base64", form_type + b"\r\nAccept: application/x-npy", body),
        (0, b"keep=0.5&seed=1&min_keep=0.3&dtype=int8&on_error=skip", b"Content-Type: image/png", IMAGE),
        (1, b"mask_ratio=0.5&strategy=block&seed=7&view=panel", form_type, body),
        (1, b"patches=1,2&view=error&draws=1", b"Accept: application/json\r\n" + form_type, body),
        (2, b"top_k=2", form_type, body),
        (3, b"target=class&label=b", form_type, body),
        (4, b"method=reconstruction&view=overlay&passes=2", form_type, body),
        (6, b"", as_json, json_body),
        (7, b"", as_json, orjson.dumps(cohere)),
        (8, b"", as_json, infer),
        (12, b"", b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", b""),
        (13, b"", b"Content-Type: application/x-image", IMAGE),
        (14, b"", as_json, orjson.dumps(instances)),
    ]
    if not wire:
        return [bytes((n,)) + query + b"\r\n" + headers + b"\r\n\r\n" + body for n, query, headers, body in cases]
    lines = [
        b"%s %s?%s HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Length: %d\r\n\r\n%s"
        % (ROUTES[n][0].encode(), ROUTES[n][1].encode(), query, headers, len(body), body)
        for n, query, headers, body in cases
    ]
    chunked = b"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x;a=b\r\n%s\r\n0\r\nT: x\r\n\r\n"
    upgrade = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    return [*lines, chunked % (len(IMAGE), IMAGE), upgrade * 2, b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"]


def tensor_seeds() -> list[bytes]:
    tensor = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": len(IMAGE) + 4},
    }
    pixels = {
        "name": "pixels",
        "datatype": "UINT8",
        "shape": [1, 32, 32, 3],
        "parameters": {"binary_data_size": 3072},
    }
    parameters = {"binary_data_output": True, "pool": "cls"}
    heads = [orjson.dumps({"inputs": [one], "parameters": parameters}) for one in (tensor, pixels)]
    values = [len(IMAGE).to_bytes(4, "little") + IMAGE, bytes(3072)]
    return [len(head).to_bytes(2, "little") + head + data for head, data in zip(heads, values, strict=True)]


def weight_seeds(folder: Path) -> list[bytes]:
    path = write_narrow(folder, **TINY)
    own = path.read_bytes()
    tensors = load(path).tensors
    torch_file, legacy = io.BytesIO(), io.BytesIO()
    content = {"model": tensors, "args": {"norm_pix_loss": 1}, "epoch": 3}
    torch.save(content, torch_file)
    torch.save(content, legacy, _use_new_zipfile_serialization=False)
    bare = safetensors.numpy.save({name: x.numpy() for name, x in tensors.items()})
    return [own, bare, torch_file.getvalue(), legacy.getvalue()]


def vector_seeds(folder: Path, suffix: str) -> list[bytes]:
    path = folder / f"seed{suffix}"
    format_of(path).write(path, SPACE, {record.file: record.path for record in RECORDS}, RECORDS)
    return [path.read_bytes()]
