"""Runs TensorRT engines: the compiled graphs of a `DeviceEngine`.

The engines are run by TensorRT's own runtime, not through torch-tensorrt: the lanes decide about streams, memory and
recordings, and nothing is allocated while a batch runs.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.engines.base import EngineError, EngineInfo, TensorRTError
from model.engines.cuda.profiles import Profile, decoder_profiles, encoder_profiles, padded_profiles
from model.engines.export import DECODER, ENCODER, PADDED_ENCODER

log = logging.getLogger(__name__)


class TensorRTGraphs:
    """The engines that `tensorrt_build.build_engines` wrote, with their execution contexts.

    Each lane has an execution context for every profile of each engine, since changing a context's profile costs a
    synchronisation. A lane's contexts share one piece of memory: they never run at once.
    """

    def __init__(self, folder: Path, info: EngineInfo, runtime: Any) -> None:
        """Loads the engines in `folder` onto the device of `info`.

        Args:
            folder: holds NAME.engine for each graph.
            info: lanes, largest batch size and the model's sizes, as at the time of building.
            runtime: the module `tensorrt` or `tensorrt_rtx`.

        Raises:
            TensorRTError: TensorRT refuses a file, or has not enough memory for it.
        """
        self._trt = runtime
        self._log = _make_logger(runtime)
        max_batch_size = info.preferred_batch
        self._profiles = {ENCODER: encoder_profiles(info.config, max_batch_size)}
        if info.mixes:
            self._profiles[PADDED_ENCODER] = padded_profiles(info.config, max_batch_size)
        if info.config.has_decoder:
            self._profiles[DECODER] = decoder_profiles(info.config, max_batch_size)
        loader = runtime.Runtime(self._log)
        self._engines = {name: self._load(loader, folder / f"{name}.engine", name) for name in self._profiles}
        needed = max(
            engine.get_device_memory_size_for_profile_v2(profile)
            for engine in self._engines.values()
            for profile in range(engine.num_optimization_profiles)
        )
        pixels = max_batch_size * info.config.num_patches * info.config.patch_dim
        lanes = range(info.lanes)
        self._memory = [torch.empty(max(1, needed), dtype=torch.uint8, device=info.device) for _ in lanes]
        self._half_pixels = [torch.empty(pixels, dtype=torch.float16, device=info.device) for _ in lanes]
        self._contexts = {
            (lane, name, profile): self._make_context(lane, name, profile)
            for lane in lanes
            for name, profiles in self._profiles.items()
            for profile in range(len(profiles))
        }
        self._reserved: dict[tuple[int, str, int, int], Any] = {}
        self._recorded: list[Any] = []
        """Contexts of recordings, kept alive: one that is reserved again still belongs to the earlier recording."""

    def encode(
        self, lane: int, patches: Tensor, visible_indices: Tensor, pooled: Tensor, latent: Tensor, padded: bool
    ) -> None:
        """See `CompiledGraphs.encode`."""
        batch, visible = visible_indices.shape
        inputs = {"patches": patches, "visible_indices": visible_indices}
        self._run(
            lane, PADDED_ENCODER if padded else ENCODER, batch, visible, inputs, {"pooled": pooled, "latent": latent}
        )

    def decode(
        self, lane: int, latent: Tensor, restore_indices: Tensor, patches: Tensor, pixels: Tensor, error: Tensor
    ) -> None:
        """See `CompiledGraphs.decode`."""
        half_pixels = self._half_pixels[lane][: pixels.numel()].view(pixels.shape)
        inputs = {"latent": latent, "restore_indices": restore_indices, "patches": patches}
        outputs = {"pixels": half_pixels, "error": error}
        self._run(lane, DECODER, len(restore_indices), latent.shape[1] - 1, inputs, outputs)
        pixels.copy_(half_pixels)  # whole numbers from 0 to 255; TensorRT has no conversion to uint8

    def reserve_for_capture(self, lane: int, batch: int, visible: int, decodes: bool) -> None:
        """Gives batches of this size a context of their own: a recording is void once its context changes."""
        for name in (ENCODER, DECODER) if decodes else (ENCODER,):
            context = self._make_context(lane, name, _profile_index(self._profiles[name], batch, visible))
            self._recorded.append(context)
            self._reserved[lane, name, batch, visible] = context

    def _run(
        self, lane: int, name: str, batch: int, visible: int, inputs: dict[str, Tensor], outputs: dict[str, Tensor]
    ) -> None:
        context = self._reserved.get((lane, name, batch, visible))
        if context is None:
            context = self._contexts[lane, name, _profile_index(self._profiles[name], batch, visible)]
        for tensor, values in inputs.items():
            if not context.set_input_shape(tensor, tuple(values.shape)):
                raise EngineError(f"TensorRT refuses {tensor} of shape {tuple(values.shape)}: {self._log.last}")
        for tensor, values in {**inputs, **outputs}.items():
            context.set_tensor_address(tensor, values.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise EngineError(f"TensorRT cannot run the {name} on {batch} images: {self._log.last}")

    def _load(self, loader: Any, path: Path, name: str) -> Any:
        engine = loader.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise TensorRTError(f"TensorRT cannot load the {name}: {self._log.last}")
        return engine

    def _make_context(self, lane: int, name: str, profile: int) -> Any:
        engine = self._engines[name]
        context = engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise TensorRTError(f"TensorRT cannot make a context for the {name}: {self._log.last}")
        stream = torch.cuda.current_stream()
        context.set_optimization_profile_async(profile, stream.cuda_stream)
        stream.synchronize()
        context.set_device_memory(self._memory[lane].data_ptr(), self._memory[lane].numel())
        return context


def _profile_index(profiles: tuple[Profile, ...], batch: int, visible: int) -> int:
    return next(index for index, profile in enumerate(profiles) if profile.holds(batch, visible))


def _make_logger(runtime: Any) -> Any:
    """Sends TensorRT's messages to our log; `last` is the last error. The base class comes with the runtime."""
    levels = {
        runtime.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        runtime.ILogger.Severity.ERROR: logging.ERROR,
        runtime.ILogger.Severity.WARNING: logging.WARNING,
    }

    class Logger(runtime.ILogger):  # type: ignore[misc]
        last = "it does not say why"

        def __init__(self) -> None:
            runtime.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level == logging.ERROR:
                self.last = message
            log.log(level, "TensorRT: %s", message)

    return Logger()
