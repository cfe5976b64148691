"""A stand-in for TensorRT's runtime, as far as we use it: an engine's file holds a name, and torch runs that graph.

The stand-in is strict where TensorRT is strict, and where TensorRT would silently do something undefined.
"""

import ctypes
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from model.engines.cuda.profiles import Profile
from tests.support.pretend_cuda import Graph

INPUTS = {
    "encoder": {"patches": np.uint8, "visible_indices": np.int32},
    "encoder_padded": {"patches": np.uint8, "visible_indices": np.int32},
    "decoder": {"latent": np.float32, "restore_indices": np.int32, "patches": np.uint8},
}
OUTPUTS = {
    "encoder": {"pooled": np.float32, "latent": np.float32},
    "encoder_padded": {"pooled": np.float32, "latent": np.float32},
    "decoder": {"pixels": np.float16, "error": np.float32},
}
MEMORY = {"encoder": 4096, "encoder_padded": 2048, "decoder": 1024}
"""Bytes that a context of each engine needs under its first profile."""


def runtime(graphs: Mapping[str, nn.Module], profiles: Mapping[str, tuple[Profile, ...]]) -> Any:
    """Makes the stand-in for the module `tensorrt`; it knows the engines that `graphs` names."""

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            name = data.decode()
            if name not in graphs:
                self.logger.log(ILogger.Severity.ERROR, "the magic number is wrong")
                return None
            return Engine(name, graphs[name], profiles[name], self.logger)

    return SimpleNamespace(
        ILogger=ILogger,
        Runtime=Runtime,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="ours"),
        __version__="10.0",
    )


class Engine:
    def __init__(self, name: str, graph: nn.Module, profiles: tuple[Profile, ...], logger: Any) -> None:
        self.name, self.graph, self.profiles, self.logger = name, graph, profiles, logger
        self.num_optimization_profiles = len(profiles)
        self.contexts: list[Context] = []

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return MEMORY[self.name] * (profile + 1)

    def create_execution_context(self, strategy: str) -> "Context":
        assert strategy == "ours"
        self.contexts.append(Context(self))
        return self.contexts[-1]


class Context:
    """An execution context of an engine; `runs` counts its batches."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profile = -1
        self.memory = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.recorded: object = None
        self.runs = 0
        self.fails = False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert address
        self.memory = size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        profile = self.engine.profiles[self.profile]
        smallest, _, largest = profile.shapes(*self._dims(name, shape)).values()
        if not all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
            self.engine.logger.log(1, f"{name} {shape} is not within {smallest} and {largest}")
            return False
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == torch.cuda.current_stream().cuda_stream
        assert self.memory >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        if self.fails:
            self.engine.logger.log(1, "out of luck")
            return False
        state = (dict(self.shapes), dict(self.addresses))
        if Graph.recording is not None:
            self.recorded = state
            Graph.recording.steps.append(lambda: self._replay(state))
        with torch.utils._python_dispatch._disable_current_modes():
            self._run()
        return True

    def _replay(self, state: object) -> None:
        assert state == (self.shapes, self.addresses), "changed after it was recorded: undefined behaviour"
        self._run()

    def _run(self) -> None:
        self.runs += 1
        name = self.engine.name
        inputs = [self._memory(tensor, self.shapes[tensor], dtype) for tensor, dtype in INPUTS[name].items()]
        outputs = self.engine.graph(*(torch.from_numpy(array.copy()) for array in inputs))
        for (tensor, dtype), value in zip(OUTPUTS[name].items(), outputs, strict=True):
            assert value.numpy().dtype == dtype
            self._memory(tensor, tuple(value.shape), dtype)[...] = value.numpy()

    def _memory(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        length = int(np.prod(shape)) * np.dtype(dtype).itemsize
        content = (ctypes.c_ubyte * length).from_address(self.addresses[name])
        return np.frombuffer(content, dtype=dtype).reshape(shape)

    def _dims(self, name: str, shape: tuple[int, ...]) -> tuple[int | str, ...]:
        dynamic = {"latent": ("B", "1+K"), "restore_indices": ("B",), "visible_indices": ("B", "K")}
        first = dynamic.get(name, ("B", "K") if self.engine.name.startswith("encoder") else ("B",))
        return (*first, *shape[len(first) :])
