"""The fuzzing target `parsers`: requests, bodies, headers, tensors, weights, vectors and archives.

The first byte of an input chooses the parser, and the others are what it reads. A whole request goes through the real
protocol class and the real app, with a fake engine.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import atheris
import orjson
import safetensors.numpy

from model.checkpoints.checkpoint import load
from model.checkpoints.errors import WeightsError
from model.checkpoints.locate import locate
from model.images.folders import LeftOut
from service.api.bodies import read_images
from service.api.responses import names_type, preferred_type
from service.cli.errors import CommandError
from service.cli.image_sources.archives import describe_archive_error, entries_in_archive
from service.cli.image_sources.entry import ImageUnreadable
from service.cli.vector_files.reading import read_vectors
from service.errors import ServiceError
from service.tracing.traceparent import parse_traceparent
from tests.attacks import fuzz_seeds
from tests.attacks.fuzz_app import App
from tests.attacks.fuzz_seeds import FOLDER_CONFIGS, IMAGE, ROUTES, archive, form
from tests.support.engines import write_narrow


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
            fuzz_seeds.request_seeds(wire=True),
            fuzz_seeds.request_seeds(wire=False),
            [b"multipart/form-data; boundary=x\n" + form(("image", "a.png", IMAGE), ("mask", "m.png", IMAGE))],
            [orjson.dumps({"images": ["aGVsbG8=", "data:image/png;base64,aGVsbG8="], "mask": "aGVsbG8="})],
            [
                b"application/json;q=0.5, image/*, */*;q=0.1",
                b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ],
            fuzz_seeds.tensor_seeds(),
            fuzz_seeds.weight_seeds(self._folder),
            *(fuzz_seeds.vector_seeds(self._folder, suffix) for suffix in (".npz", ".parquet", ".jsonl")),
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


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    """A body as it arrives."""
    for piece in data:
        yield piece


def make_target(folder: Path) -> Parsers:
    (files := folder / "files").mkdir(exist_ok=True)
    return Parsers(files)
