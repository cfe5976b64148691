"""A GPU: lanes with a stream and fixed buffers each, around graphs that somebody else has compiled.

While one lane's batch is computed, the other lane's is copied. Bytes go up from pinned memory, latents stay on the
device between encoder and decoder, and only what was asked for comes down.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.arrays import Bytes, Floats, Indices
from model.checkpoints.heads import Heads
from model.config import MAEConfig
from model.engines.base import EngineError, EngineInfo, FatalEngineError
from model.engines.cuda.profiles import usual_visible
from model.masking import PAD, restore_indices_for

Work = Literal["encode", "reconstruct"]
WARM_UPS = 2
"""Runs before a recording: libraries allocate and choose kernels in their first."""


class CompiledGraphs(Protocol):
    """The graphs, compiled. Calls put work on the current stream and do not wait for it."""

    def encode(
        self, lane: int, patches: Tensor, visible_indices: Tensor, pooled: Tensor, latent: Tensor, mixed: bool
    ) -> None:
        """Uint8 [B, K, P], int32 [B, K] -> into float32 [B, 2, D], [B, 1 + K, D]; `mixed` if positions are absent."""

    def decode(
        self, lane: int, latent: Tensor, restore_indices: Tensor, patches: Tensor, pixels: Tensor, error: Tensor
    ) -> None:
        """Float32 [B, 1 + K, D], int32 [B, N], uint8 [B, N, P] -> into uint8 [B, N, P], float32 [B, N]."""

    def reserve_for_capture(self, lane: int, batch: int, visible: int, decodes: bool) -> None:
        """What encodes, and perhaps decodes, batches of this size must not change from now on: it will be recorded."""


class DeviceEngine:
    """An `Engine` (see there) on the device that `info` names."""

    def __init__(self, kernels: CompiledGraphs, info: EngineInfo, cuda_graphs: bool = False) -> None:
        """Allocates the lanes' buffers.

        Args:
            kernels: the compiled graphs, on the device.
            info: `preferred_batch` is the largest batch.
            cuda_graphs: record the usual batches as CUDA graphs, and fill others up to the next recorded size.
        """
        self.info = info
        self.heads = Heads()
        self.lanes = info.lanes
        self.preferred_batch = info.preferred_batch
        self._kernels = kernels
        with _device_errors():
            self._lanes = [Lane(n, info.config, info.preferred_batch, info.device) for n in range(info.lanes)]
            if cuda_graphs:
                self._record()

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.embed`."""
        with self._encoded(lane, patches, visible_indices) as buffers:
            return buffers.receive("pooled", len(patches))

    def tokens(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.tokens`."""
        with self._encoded(lane, patches, visible_indices) as buffers:
            return buffers.receive("latent", len(patches), 1 + visible_indices.shape[1])[:, 1:]

    def reconstruct(self, lane: int, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Floats]:
        """See `Engine.reconstruct`."""
        if not self.info.config.has_decoder:
            raise EngineError("the model has no decoder")
        n = self.info.config.num_patches
        batch, visible = visible_indices.shape
        buffers = self._lanes[lane]
        mixed = self._mixed(visible_indices)
        with self._at_work(buffers):
            size = batch if mixed else self._size(buffers, "reconstruct", batch, visible)
            buffers.send("patches", patches, size)
            buffers.send("visible_indices", visible_indices, size)
            buffers.send("restore_indices", restore_indices_for(visible_indices, n), size)
            # Where the visible patches lie among those of all images, so that none is sent twice.
            places = np.maximum(visible_indices, 0) + np.arange(0, batch * n, n, dtype=np.int32)[:, None]
            buffers.send("places", places, size)
            self._run(buffers, "reconstruct", size, visible, mixed)
            return buffers.receive("pixels", batch), buffers.receive("error", batch)

    @contextmanager
    def _encoded(self, lane: int, patches: Bytes, visible_indices: Indices) -> Iterator[Lane]:
        batch, visible = visible_indices.shape
        buffers, mixed = self._lanes[lane], self._mixed(visible_indices)
        with self._at_work(buffers):
            size = batch if mixed else self._size(buffers, "encode", batch, visible)
            buffers.send("visible", patches, size)
            buffers.send("visible_indices", visible_indices, size)
            self._run(buffers, "encode", size, visible, mixed)
            yield buffers

    @contextmanager
    def _at_work(self, lane: Lane) -> Iterator[None]:
        with _device_errors(), torch.inference_mode(), torch.cuda.stream(lane.stream):
            yield

    def _mixed(self, visible_indices: Indices) -> bool:
        """Whether images of a batch differ in how many patches are visible. All batches come this way."""
        if len(visible_indices) > self.preferred_batch:
            raise EngineError(f"{len(visible_indices)} images in one batch: the engine takes {self.preferred_batch}")
        mixed = bool((visible_indices[:, -1] == PAD).any())
        if mixed and not self.info.mixes:
            raise EngineError("the engine takes no images with different numbers of visible patches in one batch")
        return mixed

    def _size(self, lane: Lane, work: Work, batch: int, visible: int) -> int:
        """The batch that is run: the least recorded one that holds `batch` images, or just that many."""
        recorded = (size for size in _sizes(self.preferred_batch) if (work, size, visible) in lane.graphs)
        return next((size for size in recorded if size >= batch), batch)

    def _run(self, lane: Lane, work: Work, batch: int, visible: int, mixed: bool) -> None:
        graph = None if mixed else lane.graphs.get((work, batch, visible))
        if graph is None:
            self._launch(lane, work, batch, visible, mixed)
        else:
            graph.replay()

    def _launch(self, lane: Lane, work: Work, batch: int, visible: int, mixed: bool = False) -> None:
        n, p = self.info.config.num_patches, self.info.config.patch_dim
        seen = lane.on_device("visible", batch, visible)
        latent = lane.on_device("latent", batch, 1 + visible)
        patches = lane.on_device("patches", batch)
        if work == "reconstruct":
            places = lane.on_device("places", batch, visible).flatten()
            torch.index_select(patches.view(batch * n, p), 0, places, out=seen.view(batch * visible, p))
        visible_indices = lane.on_device("visible_indices", batch, visible)
        self._kernels.encode(lane.number, seen, visible_indices, lane.on_device("pooled", batch), latent, mixed)
        if work == "reconstruct":
            restore_indices, pixels, error = (
                lane.on_device(name, batch) for name in ("restore_indices", "pixels", "error")
            )
            self._kernels.decode(lane.number, latent, restore_indices, patches, pixels, error)

    def _record(self) -> None:
        """Records every usual batch of every lane: launching a small model's kernels costs more than they do."""
        n, quarter = self.info.config.num_patches, usual_visible(self.info.config)
        works: list[tuple[Work, int]] = [("encode", n), ("encode", quarter)]
        if self.info.config.has_decoder:
            works.append(("reconstruct", quarter))
        for lane in self._lanes:
            for work, visible in works:
                for size in _sizes(self.preferred_batch):
                    self._kernels.reserve_for_capture(lane.number, size, visible, work == "reconstruct")
                    with self._at_work(lane):
                        for _ in range(WARM_UPS):
                            self._launch(lane, work, size, visible)
                        lane.stream.synchronize()
                        graph = torch.cuda.CUDAGraph()
                        with torch.cuda.graph(graph, pool=lane.pool, stream=lane.stream):
                            self._launch(lane, work, size, visible)
                        lane.pool = graph.pool()
                        lane.graphs[work, size, visible] = graph


class Lane:
    """A stream, and buffers on both sides that never move: a batch takes the first part of each."""

    def __init__(self, number: int, config: MAEConfig, most: int, device: str) -> None:
        """Buffers for batches of up to `most` images, zero at first (every position is then a valid one)."""
        n, p, d = config.num_patches, config.patch_dim, config.embed_dim
        self.number = number
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.graphs: dict[tuple[Work, int, int], torch.cuda.CUDAGraph] = {}
        self.pool: Any = None
        """Memory that the lane's recordings share: no two of them run at once."""
        self._rows: dict[str, tuple[int, ...]] = {
            "patches": (n, p),
            "visible": (n, p),
            "visible_indices": (n,),
            "places": (n,),
            "restore_indices": (n,),
            "pooled": (2, d),
            "latent": (1 + n, d),
            "pixels": (n, p),
            "error": (n,),
        }
        bytes_, floats = ("patches", "visible", "pixels"), ("pooled", "latent", "error")
        self._device: dict[str, Tensor] = {}
        self._host: dict[str, Tensor] = {}
        for name, row in self._rows.items():
            dtype = torch.uint8 if name in bytes_ else torch.float32 if name in floats else torch.int32
            length = most * math.prod(row)
            self._device[name] = torch.zeros(length, dtype=dtype, device=device)
            self._host[name] = torch.zeros(length, dtype=dtype, pin_memory=torch.device(device).type == "cuda")
        torch.cuda.current_stream().synchronize()  # the zeros were written there, and are used on our stream

    def on_device(self, name: str, batch: int, length: int | None = None) -> Tensor:
        """The first `batch` rows, each `length` long (its whole length if None), one after another."""
        return _view(self._device[name], batch, length, self._rows[name])

    def send(self, name: str, array: NDArray[np.generic], batch: int) -> None:
        """Puts `array` on its way, filled up to `batch` rows with copies of its first."""
        host = _view(self._host[name], batch, array.shape[1], self._rows[name])
        numbers = host.numpy()
        numbers[: len(array)] = array
        numbers[len(array) :] = array[0]
        self.on_device(name, batch, array.shape[1]).copy_(host, non_blocking=True)

    def receive(self, name: str, batch: int, length: int | None = None) -> NDArray[Any]:
        """Waits for the first `batch` rows and returns them in memory of their own."""
        host = _view(self._host[name], batch, length, self._rows[name])
        host.copy_(self.on_device(name, batch, length), non_blocking=True)
        self.stream.synchronize()
        return host.numpy().copy()


def _view(buffer: Tensor, batch: int, length: int | None, row: tuple[int, ...]) -> Tensor:
    """The start of a flat buffer as [batch, length, ...]."""
    shape = (batch, row[0] if length is None else length, *row[1:])
    return buffer[: math.prod(shape)].view(shape)


def _sizes(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return [*(2**power for power in range((most - 1).bit_length())), most]


@contextmanager
def _device_errors() -> Iterator[None]:
    """Tells what the device survives from what it does not."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineError(f"the GPU has not enough memory: {error}") from error
    except torch.AcceleratorError as error:  # kept by the driver: every later call fails too
        raise FatalEngineError(f"the GPU has failed: {error}") from error
