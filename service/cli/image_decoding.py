"""Files -> patches, for a collection: in this process, or in several processes where one cannot feed the engine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from model.arrays import Bytes
from model.config import MAEConfig, Preprocessing
from model.engines.base import EngineInfo
from service.cli.errors import describe_file_error
from service.errors import ServiceError
from service.inference.decode_memory import DecodeMemory
from service.inference.image_decoder import ImageDecoder
from service.inference.limits import LocalBudget
from service.settings import Settings


class UnreadImage(NamedTuple):
    """An image to decode."""

    path: str
    """Names it in errors."""
    read: Callable[[], bytes]
    """Its bytes; for a decoder in another process this can be pickled."""


class DecodedFile(NamedTuple):
    """What became of an image."""

    patches: Bytes | None
    """uint8 [N, P]; None if it failed."""
    error: str
    """Why it failed, one sentence that names it; "" if it did not."""
    size: int
    """Bytes of its file; 0 if it could not be read."""


@dataclass(frozen=True)
class DecoderSettings:
    """What a decoder needs to know; it is sent to other processes."""

    config: MAEConfig
    preprocessing: Preprocessing
    max_pixels: int
    max_decode_bytes: int

    @classmethod
    def of(cls, info: EngineInfo, settings: Settings) -> DecoderSettings:
        """Those of an engine's model."""
        return cls(info.config, info.preprocessing, settings.max_pixels, settings.max_decode_bytes)

    def decoder(self) -> ImageDecoder:
        """A decoder with memory of its own."""
        memory = DecodeMemory(LocalBudget(self.max_decode_bytes))
        return ImageDecoder(self.config, self.preprocessing, self.max_pixels, memory)


class FileDecoder:
    """Reads and decodes images one after the other; several threads may do so at once."""

    def __init__(self, settings: DecoderSettings) -> None:
        """For one model."""
        self._decoder = settings.decoder()

    def __call__(self, images: Sequence[UnreadImage]) -> list[DecodedFile]:
        """Decodes images; an error of one is in its result."""
        return [self._decode(image) for image in images]

    def _decode(self, image: UnreadImage) -> DecodedFile:
        size = 0
        try:
            data = image.read()
            size = len(data)
            return DecodedFile(self._decoder.decode_when_free(data, 0).patches, "", size)
        except (OSError, ServiceError) as error:
            return DecodedFile(None, describe_file_error(image.path, error), size)


class _OfProcess:
    """The decoder of a process that does nothing but decode."""

    decoder: FileDecoder

    @classmethod
    def start(cls, settings: DecoderSettings) -> None:
        """Makes the decoder; signals to the whole group of processes are left to the parent."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_exit_with_parent, daemon=True).start()
        cls.decoder = FileDecoder(settings)


def _exit_with_parent() -> None:
    """Ends the process when its parent does, for example by SIGKILL: the pool would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a process of a pool has a parent"
    parent.join()
    os._exit(1)


def decode_in_process(images: Sequence[UnreadImage]) -> tuple[Bytes, list[tuple[str, int]]]:
    """Decodes images in a process of `open_decoders`.

    Returns:
        The patches of those that did not fail, uint8 [n, N, P], and error and size of each image.
    """
    decoded = _OfProcess.decoder(images)
    patches = [file.patches for file in decoded if file.patches is not None]
    stacked = np.stack(patches) if patches else np.empty((0, 0, 0), np.uint8)
    return stacked, [(file.error, file.size) for file in decoded]


def open_decoders(settings: DecoderSettings, threads: int, processes: int) -> tuple[Executor, FileDecoder | None]:
    """An executor with threads and the decoder for them; with `processes`, one with processes, and None."""
    if not processes:
        return ThreadPoolExecutor(threads, "decode"), FileDecoder(settings)
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, _OfProcess.start, (settings,)), None


def unpack(stacked: Bytes, outcomes: list[tuple[str, int]]) -> list[DecodedFile]:
    """The results of `decode_in_process`, one of each image."""
    rows = iter(stacked)
    return [DecodedFile(None if error else next(rows), error, size) for error, size in outcomes]
