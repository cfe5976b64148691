"""An engine on a GPU: lanes with a stream and fixed buffers each, around compiled graphs.

While one lane's batch is computed, the other lane's batch is copied. Bytes go up from pinned memory, latents stay on
the device between encoder and decoder, and only the requested results come down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.arrays import Bytes, Floats, Indices
from model.config import MAEConfig
from model.engines.base import EngineError, EngineInfo, FatalEngineError
from model.engines.cuda.profiles import usual_visible
from model.masking import PAD, restore_indices_for

Work = Literal["encode", "reconstruct"]
WARM_UPS = 2
"""Runs before a CUDA graph is recorded: libraries allocate memory and choose kernels in the first one."""


class CompiledGraphs(Protocol):
    """The graphs, compiled. Calls put work on the current stream and do not wait for it."""

    def encode(
        self, lane: int, patches: Tensor, visible_indices: Tensor, pooled: Tensor, latent: Tensor, padded: bool
    ) -> None:
        """Uint8 [B, K, P], int32 [B, K] -> into float32 [B, 2, D], [B, 1 + K, D]; `padded` if some indices are PAD."""

    def decode(
        self, lane: int, latent: Tensor, restore_indices: Tensor, patches: Tensor, pixels: Tensor, error: Tensor
    ) -> None:
        """Float32 [B, 1 + K, D], int32 [B, N], uint8 [B, N, P] -> into uint8 [B, N, P], float32 [B, N]."""

    def reserve_for_capture(self, lane: int, batch: int, visible: int, decodes: bool) -> None:
        """Keeps the state that runs batches of this size unchanged from now on: a CUDA graph will be recorded of it."""


class DeviceEngine:
    """An `Engine` on the device that `info` names."""

    def __init__(
        self,
        graphs: CompiledGraphs,
        info: EngineInfo,
        cuda_graphs: bool = False,
        proceed: Callable[[], None] = lambda: None,
    ) -> None:
        """Allocates the lanes' buffers.

        Args:
            graphs: the compiled graphs, on the device.
            info: `preferred_batch` is the largest batch size.
            cuda_graphs: record the usual batches as CUDA graphs, and fill other batches up to the next recorded size.
            proceed: called before each recording; what it raises ends the recording.
        """
        self.info = info
        self._graphs = graphs
        with device_errors():
            self._lanes = [Lane(n, info.config, info.preferred_batch, info.device) for n in range(info.lanes)]
            if cuda_graphs:
                self._record(proceed)

    def embed(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.embed`."""
        with self._encode(lane, patches, visible_indices) as buffers:
            return buffers.receive("pooled", len(patches))

    def tokens(self, lane: int, patches: Bytes, visible_indices: Indices) -> Floats:
        """See `Engine.tokens`."""
        with self._encode(lane, patches, visible_indices) as buffers:
            return buffers.receive("latent", len(patches), 1 + visible_indices.shape[1])[:, 1:]

    def reconstruct(self, lane: int, patches: Bytes, visible_indices: Indices) -> tuple[Bytes, Floats]:
        """See `Engine.reconstruct`."""
        if not self.info.config.has_decoder:
            raise EngineError("the model has no decoder")
        n = self.info.config.num_patches
        batch, visible = visible_indices.shape
        buffers = self._lanes[lane]
        padded = self._is_padded(visible_indices)
        with self._on_stream(buffers):
            size = batch if padded else self._run_size(buffers, "reconstruct", batch, visible)
            buffers.send("patches", patches, size)
            buffers.send("visible_indices", visible_indices, size)
            buffers.send("restore_indices", restore_indices_for(visible_indices, n), size)
            # Indices of the visible patches among the patches of all images, so that none is sent twice.
            flat_indices = np.maximum(visible_indices, 0) + np.arange(0, batch * n, n, dtype=np.int32)[:, None]
            buffers.send("flat_indices", flat_indices, size)
            self._run(buffers, "reconstruct", size, visible, padded)
            return buffers.receive("pixels", batch), buffers.receive("error", batch)

    @contextmanager
    def _encode(self, lane: int, patches: Bytes, visible_indices: Indices) -> Iterator[Lane]:
        batch, visible = visible_indices.shape
        buffers, padded = self._lanes[lane], self._is_padded(visible_indices)
        with self._on_stream(buffers):
            size = batch if padded else self._run_size(buffers, "encode", batch, visible)
            buffers.send("visible", patches, size)
            buffers.send("visible_indices", visible_indices, size)
            self._run(buffers, "encode", size, visible, padded)
            yield buffers

    @contextmanager
    def _on_stream(self, lane: Lane) -> Iterator[None]:
        with device_errors(), torch.inference_mode(), torch.cuda.stream(lane.stream):
            yield

    def _is_padded(self, visible_indices: Indices) -> bool:
        """Whether images of the batch differ in their number of visible patches.

        Raises:
            EngineError: the batch is too large, or is padded and the engine takes no padding.
        """
        if len(visible_indices) > self.info.preferred_batch:
            raise EngineError(
                f"{len(visible_indices)} images in one batch: the engine takes {self.info.preferred_batch}"
            )
        padded = bool((visible_indices[:, -1] == PAD).any())
        if padded and not self.info.mixes:
            raise EngineError("the engine takes no images with different numbers of visible patches in one batch")
        return padded

    def _run_size(self, lane: Lane, work: Work, batch: int, visible: int) -> int:
        """The size of the batch that is run: the least recorded size that holds `batch` images, or else `batch`."""
        recorded = (size for size in _recorded_sizes(self.info.preferred_batch) if (work, size, visible) in lane.graphs)
        return next((size for size in recorded if size >= batch), batch)

    def _run(self, lane: Lane, work: Work, batch: int, visible: int, padded: bool) -> None:
        graph = None if padded else lane.graphs.get((work, batch, visible))
        if graph is None:
            self._launch(lane, work, batch, visible, padded)
        else:
            graph.replay()

    def _launch(self, lane: Lane, work: Work, batch: int, visible: int, padded: bool = False) -> None:
        n, p = self.info.config.num_patches, self.info.config.patch_dim
        visible_patches = lane.on_device("visible", batch, visible)
        latent = lane.on_device("latent", batch, 1 + visible)
        patches = lane.on_device("patches", batch)
        if work == "reconstruct":
            flat_indices = lane.on_device("flat_indices", batch, visible).flatten()
            flat_visible = visible_patches.view(batch * visible, p)
            torch.index_select(patches.view(batch * n, p), 0, flat_indices, out=flat_visible)
        visible_indices = lane.on_device("visible_indices", batch, visible)
        self._graphs.encode(
            lane.number, visible_patches, visible_indices, lane.on_device("pooled", batch), latent, padded
        )
        if work == "reconstruct":
            restore_indices, pixels, error = (
                lane.on_device(name, batch) for name in ("restore_indices", "pixels", "error")
            )
            self._graphs.decode(lane.number, latent, restore_indices, patches, pixels, error)

    def _record(self, proceed: Callable[[], None]) -> None:
        """Records the usual batches of every lane: launching a small model's kernels costs more than running them."""
        n, quarter = self.info.config.num_patches, usual_visible(self.info.config)
        works: list[tuple[Work, int]] = [("encode", n), ("encode", quarter)]
        if self.info.config.has_decoder:
            works.append(("reconstruct", quarter))
        for lane in self._lanes:
            for work, visible in works:
                for size in _recorded_sizes(self.info.preferred_batch):
                    proceed()
                    self._graphs.reserve_for_capture(lane.number, size, visible, work == "reconstruct")
                    with self._on_stream(lane):
                        for _ in range(WARM_UPS):
                            self._launch(lane, work, size, visible)
                        lane.stream.synchronize()
                        graph = torch.cuda.CUDAGraph()
                        # thread_local: what other threads ask of the device must not end the recording, nor the
                        # recording what they do.
                        with torch.cuda.graph(
                            graph, pool=lane.pool, stream=lane.stream, capture_error_mode="thread_local"
                        ):
                            self._launch(lane, work, size, visible)
                        lane.pool = graph.pool()
                        lane.graphs[work, size, visible] = graph


class Lane:
    """A stream, and buffers on host and device that never move: a batch takes the first part of each."""

    def __init__(self, number: int, config: MAEConfig, max_batch_size: int, device: str) -> None:
        """Allocates buffers for batches of up to `max_batch_size` images, zero at first: zero is a valid index."""
        n, p, d = config.num_patches, config.patch_dim, config.embed_dim
        self.number = number
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.graphs: dict[tuple[Work, int, int], torch.cuda.CUDAGraph] = {}
        self.pool: Any = None
        """Memory that the lane's CUDA graphs share: no two of them run at once."""
        self._shapes: dict[str, tuple[int, ...]] = {
            "patches": (n, p),
            "visible": (n, p),
            "visible_indices": (n,),
            "flat_indices": (n,),
            "restore_indices": (n,),
            "pooled": (2, d),
            "latent": (1 + n, d),
            "pixels": (n, p),
            "error": (n,),
        }
        bytes_, floats = ("patches", "visible", "pixels"), ("pooled", "latent", "error")
        self._device: dict[str, Tensor] = {}
        self._host: dict[str, Tensor] = {}
        for name, shape in self._shapes.items():
            dtype = torch.uint8 if name in bytes_ else torch.float32 if name in floats else torch.int32
            length = max_batch_size * math.prod(shape)
            self._device[name] = torch.zeros(length, dtype=dtype, device=device)
            self._host[name] = torch.zeros(length, dtype=dtype, pin_memory=torch.device(device).type == "cuda")
        torch.cuda.current_stream().synchronize()  # the zeros were written there, and are used on our stream

    def on_device(self, name: str, batch: int, length: int | None = None) -> Tensor:
        """The first `batch` images of a device buffer, each `length` long (its whole length if None)."""
        return _view(self._device[name], batch, length, self._shapes[name])

    def send(self, name: str, array: NDArray[np.generic], batch: int) -> None:
        """Starts to copy `array` to the device, filled up to `batch` images with copies of its first image."""
        host = _view(self._host[name], batch, array.shape[1], self._shapes[name])
        numbers = host.numpy()
        numbers[: len(array)] = array
        numbers[len(array) :] = array[0]
        self.on_device(name, batch, array.shape[1]).copy_(host, non_blocking=True)

    def receive(self, name: str, batch: int, length: int | None = None) -> NDArray[Any]:
        """Waits for the first `batch` images and returns a copy of them."""
        host = _view(self._host[name], batch, length, self._shapes[name])
        host.copy_(self.on_device(name, batch, length), non_blocking=True)
        self.stream.synchronize()
        return host.numpy().copy()


def _view(buffer: Tensor, batch: int, length: int | None, shape: tuple[int, ...]) -> Tensor:
    """The start of a flat buffer as [batch, length, ...]."""
    shape = (batch, shape[0] if length is None else length, *shape[1:])
    return buffer[: math.prod(shape)].view(shape)


def _recorded_sizes(max_batch_size: int) -> list[int]:
    """1, 2, 4, … and `max_batch_size`."""
    return [*(2**power for power in range((max_batch_size - 1).bit_length())), max_batch_size]


@contextmanager
def device_errors() -> Iterator[None]:
    """Turns torch's errors into our own, which tell whether the device can go on.

    Raises:
        EngineError: the device has not enough memory.
        FatalEngineError: the device has failed.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineError(f"the GPU has not enough memory: {error}") from error
    except torch.AcceleratorError as error:  # kept by the driver: every later call fails too
        raise FatalEngineError(f"the GPU has failed: {error}") from error
