"""The real server with a fake engine, which misbehaves as the environment variable FAKE says.

While the file FAKE_GATE exists, the build and every batch wait; while the file FAKE_END exists, a process whose engine
is lost does not end (see `tests.support.gate`).
"""

import asyncio
import dataclasses
import hashlib
import os
import sys
import time
from types import SimpleNamespace

import numpy as np

from model.checkpoints.heads import Head, Heads
from model.checkpoints.native import HeadConfig
from model.config import PRESETS
from model.engines.base import FatalEngineError, ServedModel
from service.inference import watchdog
from service.inference.image_decoder import ImageDecoder
from service.lifecycle import engine_lifecycle
from service.serving import run
from service.settings import load_settings
from tests.support.engines import FakeEngine
from tests.support.gate import is_closed, wait_at_gate

POISON = 201
"""The shade of grey of an image that makes the engine fail."""


class FailingEngine(FakeEngine):
    """An engine whose batches take `seconds`, and which fails as `kind` says where an image has the grey POISON.

    A vector repeats the mean of the image's visible patches; a token repeats the mean of its patch plus its index.
    """

    def __init__(self, kind: str, seconds: float, batch: int) -> None:
        super().__init__(batch, config=PRESETS["mae_tiny"])
        self._kind = kind
        self._seconds = seconds

    def embed(self, lane, patches, visible_indices):
        if self._kind == "burns":
            burn_cpu(self._seconds)
        else:
            time.sleep(self._seconds)
        mean = patches.mean(axis=(1, 2), dtype=np.float32)
        poisoned = (patches == POISON).all(axis=(1, 2))
        if self._kind == "hangs" and poisoned.any():
            time.sleep(100_000)
        if self._kind == "raises" and poisoned.any():
            raise RuntimeError("a poisoned image")
        if self._kind == "fatal" and poisoned.any():
            raise FatalEngineError("the device has fallen off the bus")
        if self._kind == "dies" and poisoned.any():
            sys.exit("the thread is gone")
        vectors = np.repeat(mean[:, None, None], 2, axis=1) * np.ones(192, np.float32)
        if self._kind == "nan":
            vectors[poisoned] = np.nan
        return vectors

    def tokens(self, lane, patches, visible_indices):
        means = patches.mean(axis=2, dtype=np.float32) + visible_indices.astype(np.float32)
        return means[..., None] * np.ones(192, np.float32)

    def reconstruct(self, lane, patches, visible_indices):
        time.sleep(self._seconds)
        return 255 - patches, patches.mean(axis=2, dtype=np.float32) + np.float32(visible_indices.shape[1])


class GatedEngine:
    """An engine behind the gate FAKE_GATE. It has no measured seconds, so a free lane takes all that wait."""

    def __init__(self, engine):
        self.info = engine.info.model_copy(update={"batch_curves": None})
        self._engine = engine

    def embed(self, lane, patches, visible_indices):
        wait_at_gate("FAKE_GATE")
        return self._engine.embed(lane, patches, visible_indices)

    def tokens(self, lane, patches, visible_indices):
        wait_at_gate("FAKE_GATE")
        return self._engine.tokens(lane, patches, visible_indices)

    def reconstruct(self, lane, patches, visible_indices):
        wait_at_gate("FAKE_GATE")
        return self._engine.reconstruct(lane, patches, visible_indices)


def burn_cpu(seconds):
    """Uses `seconds` of CPU time, however long that takes, without the GIL."""
    data, end = bytes(1 << 20), time.thread_time() + seconds
    while time.thread_time() < end:
        hashlib.sha256(data)


def hang_in_decoder(seconds):
    """Makes every decode take `seconds`, as a hostile image could."""
    decode = ImageDecoder.decode

    def hang(self, *arguments, **options):
        time.sleep(seconds)
        return decode(self, *arguments, **options)

    ImageDecoder.decode = hang


def end_at_gate():
    """After the engine is lost, the process ends when the gate FAKE_END is opened, and not after two seconds."""

    async def sleep(seconds):
        if seconds == engine_lifecycle.LOST_GRACE_S:
            while is_closed("FAKE_END"):
                await asyncio.sleep(0.01)
        else:
            await asyncio.sleep(seconds)

    engine_lifecycle.asyncio = SimpleNamespace(**{**vars(asyncio), "sleep": sleep})


def build(settings, progress):
    progress("pretending to build")
    os.set_inheritable(os.open(__file__, os.O_RDONLY), True)  # as OpenVINO opens the files of an engine
    wait_at_gate("FAKE_GATE")
    time.sleep(float(os.environ.get("FAKE_LOAD_S", "0")))
    kind, seconds = os.environ.get("FAKE", "works"), float(os.environ.get("FAKE_S", "0.02"))
    if kind == "real":
        from model.engines.build import build as build_real

        served = build_real(settings, progress)
        return dataclasses.replace(served, engine=GatedEngine(served.engine), measurement=None)
    if kind == "unbuildable":
        raise RuntimeError("out of memory, say")
    engine = GatedEngine(FailingEngine(kind, seconds, settings.max_batch or 16))
    if kind == "unopenable":
        del engine.info
    classes = tuple(filter(None, os.environ.get("FAKE_HEAD", "").split(",")))
    return serve_with_head(engine, classes) if classes else ServedModel(engine)


def serve_with_head(engine, classes):
    """An engine with a head: the brighter an image, the more probable are the later classes."""
    config = HeadConfig(pool="mean", classes=classes)
    slopes = np.linspace(-1, 1, len(classes), dtype=np.float32)
    weight = np.repeat(slopes[:, None], 192, axis=1) / 192 / 32
    engine.info = engine.info.model_copy(update={"head": config})
    return ServedModel(engine, Heads(Head(config, weight, -4 * slopes)))


if __name__ == "__main__":
    import logging

    logging.basicConfig(level=logging.INFO)
    if "FAKE_GATE" in os.environ:
        watchdog.HANG_LEAST_S = 3600  # a test may keep the gate closed for long
    watchdog.HANG_LEAST_S = float(os.environ.get("FAKE_HANG_LEAST_S", watchdog.HANG_LEAST_S))
    if "FAKE_DECODE_S" in os.environ:
        hang_in_decoder(float(os.environ["FAKE_DECODE_S"]))
    if "FAKE_END" in os.environ:
        end_at_gate()
    sys.exit(run(load_settings(), build))
