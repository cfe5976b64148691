"""The fuzzing target `parsers`: requests, bodies, headers, tensors, weights, vectors and archives.

The first byte of an input chooses the parser, and the others are what it reads. A whole request goes through the real
protocol class and the real app, with a fake engine.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import gzip
import io
import json
import logging
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import atheris
import numpy as np
import orjson
import safetensors.numpy
import torch
import uvicorn
from uvicorn.server import ServerState

from model.checkpoints.checkpoint import load
from model.checkpoints.errors import WeightsError
from model.checkpoints.heads import Head, Heads
from model.checkpoints.locate import locate
from model.checkpoints.native import HeadConfig
from model.config import Preprocessing
from model.engines.base import ServedModel
from model.images.folders import LeftOut
from service.api.app import create_app
from service.api.bodies import read_images
from service.api.responses import names_type, preferred_type
from service.cli.errors import CommandError
from service.cli.image_sources.archives import describe_archive_error, entries_in_archive
from service.cli.image_sources.entry import ImageUnreadable
from service.cli.vector_files.formats import format_of
from service.cli.vector_files.reading import read_vectors
from service.cli.vector_files.space import VectorRecord, VectorSpace
from service.connection_limit import ConnectionLimit
from service.errors import ServiceError
from service.http_protocol import HttpProtocol
from service.settings import Settings
from service.tracing.traceparent import parse_traceparent
from tests.support.connections import Transport
from tests.support.engines import SMALL, FakeEngine, write_narrow
from tests.support.image_files import png_file

IMAGE = png_file(np.zeros((2, 2), np.uint8))
ANSWER_S = 30.0
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


class UnexpectedAnswer(Exception):
    """An answer of status 500 or more, an error in the log, or no answer."""


class App:
    """The app, and connections to it."""

    def __init__(self) -> None:
        config = HeadConfig(pool="mean", classes=("a", "b"))
        engine = FakeEngine()
        engine.info = engine.info.model_copy(update={"head": config})
        head = Head(config, np.ones((2, SMALL.embed_dim), np.float32), np.zeros(2, np.float32))
        settings = Settings(
            max_pixels=1_000_000, max_images=8, max_body_mb=1, request_timeout_s=ANSWER_S, predict_route="/predict"
        )
        self._app = create_app(settings, lambda *_: ServedModel(engine, Heads(head)))
        self._make = functools.partial(HttpProtocol, ConnectionLimit(100), 600.0, 600.0)
        self._config = uvicorn.Config(
            self._app, http=self._make, interface="asgi3", ws="none", lifespan="off", log_config=None
        )
        self._config.load()
        self._errors: list[logging.LogRecord] = []
        handler = logging.Handler(logging.ERROR)
        handler.emit = self._errors.append  # type: ignore[method-assign]
        logging.getLogger().handlers[:] = [handler]
        self._loop = asyncio.new_event_loop()
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._loop.run_until_complete(self._lifespan.__aenter__())
        while b" 200 " not in self.exchange(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"):
            pass

    def exchange(self, *pieces: bytes) -> bytes:
        """What is written when `pieces` arrive and the connection then ends.

        Raises:
            UnexpectedAnswer: as its class says.
        """
        written = self._loop.run_until_complete(self._exchange(pieces))
        if self._errors:
            record, self._errors[:] = self._errors[0], []
            raise UnexpectedAnswer(record.getMessage()) from (record.exc_info[1] if record.exc_info else None)
        return written

    async def _exchange(self, pieces: tuple[bytes, ...]) -> bytes:
        state, transport = ServerState(), Transport()
        loop = asyncio.get_running_loop()
        protocol = self._make(config=self._config, server_state=state, app_state={}, _loop=loop)
        protocol.connection_made(transport)
        for piece in pieces:
            if not transport.closed:
                protocol.data_received(piece)
            await asyncio.sleep(0)
        if state.tasks and not protocol._in_body:
            await asyncio.wait(state.tasks, timeout=ANSWER_S)
        protocol.connection_lost(None)
        if state.tasks and (await asyncio.wait(state.tasks, timeout=ANSWER_S))[1]:
            raise UnexpectedAnswer("a request has not ended")
        for status in (b"500", b"502", b"503", b"504"):
            if b"HTTP/1.1 " + status in transport.written:
                raise UnexpectedAnswer(transport.written.decode("latin-1")[:2000])
        return transport.written


class Parsers:
    """All parsers."""

    memory_mb = 600
    max_length = 32_768

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._app = App()
        self._parsers: list[Callable[[bytes], bool]] = [
            self._wire,
            self._request,
            self._form,
            self._json,
            self._headers,
            self._tensors,
            self._weights,
            functools.partial(self._vectors, ".npz"),
            functools.partial(self._vectors, ".parquet"),
            functools.partial(self._vectors, ".jsonl"),
            functools.partial(self._archive, "a.tar"),
            functools.partial(self._archive, "a.tar.gz"),
            self._folder_config,
        ]
        weights = folder / "folder"
        weights.mkdir(exist_ok=True)
        narrow = load(write_narrow(weights)).tensors
        safetensors.numpy.save_file({name: x.numpy() for name, x in narrow.items()}, weights / "model.safetensors")
        (weights / "narrow.safetensors").unlink()

    def seeds(self) -> dict[str, bytes]:
        made = [
            self._request_seeds(wire=True),
            self._request_seeds(wire=False),
            [b"multipart/form-data; boundary=x\n" + form(("image", "a.png", IMAGE), ("mask", "m.png", IMAGE))],
            [orjson.dumps({"images": ["aGVsbG8=", "data:image/png;base64,aGVsbG8="], "mask": "aGVsbG8="})],
            [
                b"application/json;q=0.5, image/*, */*;q=0.1",
                b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ],
            self._tensor_seeds(),
            self._weight_seeds(),
            *(self._vector_seeds(suffix) for suffix in (".npz", ".parquet", ".jsonl")),
            [archive()],
            [gzip.compress(archive())],
            [
                json.dumps(config).encode() + b"\0" + json.dumps({"do_resize": True, "size": 32}).encode()
                for config in FOLDER_CONFIGS
            ],
        ]
        return {
            f"{number}-{n}": bytes((number,)) + data for number, some in enumerate(made) for n, data in enumerate(some)
        }

    def read(self, data: bytes) -> bool:
        return bool(data) and self._parsers[data[0] % len(self._parsers)](data[1:])

    def is_expected(self, error: BaseException) -> bool:
        if isinstance(error, ServiceError):
            return error.status < 500
        return isinstance(error, CommandError | WeightsError | ImageUnreadable)

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """A mutation, mostly for the same parser."""
        changed = bytes(atheris.Mutate(data[1:], max_size - 1))
        first = data[:1] if data and seed % 16 else bytes((seed % len(self._parsers),))
        return first + changed

    def _wire(self, data: bytes) -> bool:
        middle = len(data) // 2
        return b" 200 " in self._app.exchange(data[:middle], data[middle:])

    def _request(self, data: bytes) -> bool:
        """A request whose first byte chooses the route; query and headers are up to an empty line, the body follows."""
        method, path = ROUTES[data[0] % len(ROUTES) if data else 0]
        head, _, body = data[1:].partition(b"\r\n\r\n")
        query, _, headers = head.partition(b"\r\n")
        line = b"%s %s?%s HTTP/1.1\r\nHost: x\r\n" % (method.encode(), path.encode(), query)
        length = b"\r\nContent-Length: %d\r\n\r\n" % len(body)
        return b" 200 " in self._app.exchange(line + (headers or b"X: x") + length + body)

    def _form(self, data: bytes) -> bool:
        content_type, _, body = data.partition(b"\n")
        middle = len(body) // 2
        read = read_images(
            content_type.decode("latin-1"), pieces(body[:middle], body[middle:]), 8, True, len(body) % 2 == 0
        )
        return bool(asyncio.run(read).images)

    def _json(self, data: bytes) -> bool:
        return bool(asyncio.run(read_images("application/json", pieces(data), 8, True, len(data) % 2 == 0)).images)

    def _headers(self, data: bytes) -> bool:
        text = data.decode("latin-1")
        names_type(text, "image/png")
        parse_traceparent(text)
        return bool(preferred_type(text, ("application/json", "image/png")))

    def _tensors(self, data: bytes) -> bool:
        """An inference request in binary: two bytes of length, the JSON, and the tensors."""
        length = int.from_bytes(data[:2], "little") if data else 0
        head = b"POST /v2/models/embed/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
        lengths = b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (length, len(data) - 2)
        return len(data) >= 2 and b" 200 " in self._app.exchange(head + lengths + data[2:])

    def _weights(self, data: bytes) -> bool:
        path = self._write("weights.pth", data)
        return bool(load(locate(str(path), None).path, heads=(2, 2)).tensors)

    def _folder_config(self, data: bytes) -> bool:
        """config.json and preprocessor_config.json of a folder of weights, parted by a zero byte."""
        config, _, preprocessor = data.partition(b"\0")
        folder = self._folder / "folder"
        (folder / "config.json").write_bytes(config)
        (folder / "preprocessor_config.json").write_bytes(preprocessor)
        return bool(load(locate(str(folder), None).path).tensors)

    def _vectors(self, suffix: str, data: bytes) -> bool:
        path = self._write(f"vectors{suffix}", data)
        return bool(list(read_vectors(path).records))

    def _archive(self, name: str, data: bytes) -> bool:
        path = self._write(name, data)
        opened = functools.partial(path.open, "rb")
        disk_path = str(path)
        entries = entries_in_archive(name, disk_path, opened, LeftOut(), describe_archive_error, disk_path)
        whole = True
        for entry in entries:
            whole &= not entry.problem
            try:
                entry.read()
            except ImageUnreadable:
                whole = False
        return whole

    def _write(self, name: str, data: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(data)
        return path

    def _request_seeds(self, wire: bool) -> list[bytes]:
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
        chunked = (
            b"POST /embed HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x;a=b\r\n%s\r\n0\r\nT: x\r\n\r\n"
        )
        upgrade = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        return [*lines, chunked % (len(IMAGE), IMAGE), upgrade * 2, b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"]

    def _tensor_seeds(self) -> list[bytes]:
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

    def _weight_seeds(self) -> list[bytes]:
        path = write_narrow(self._folder, **TINY)
        own = path.read_bytes()
        tensors = load(path).tensors
        torch_file, legacy = io.BytesIO(), io.BytesIO()
        content = {"model": tensors, "args": {"norm_pix_loss": 1}, "epoch": 3}
        torch.save(content, torch_file)
        torch.save(content, legacy, _use_new_zipfile_serialization=False)
        bare = safetensors.numpy.save({name: x.numpy() for name, x in tensors.items()})
        return [own, bare, torch_file.getvalue(), legacy.getvalue()]

    def _vector_seeds(self, suffix: str) -> list[bytes]:
        path = self._folder / f"seed{suffix}"
        format_of(path).write(path, SPACE, {record.file: record.path for record in RECORDS}, RECORDS)
        return [path.read_bytes()]


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


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    """A body as it arrives."""
    for piece in data:
        yield piece


def make_target(folder: Path) -> Parsers:
    (files := folder / "files").mkdir(exist_ok=True)
    return Parsers(files)
