"""The identity of the GPU, its driver and its libraries: an engine runs only with those it was built with."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from model.engines.base import EngineBuildError, TensorRTError

DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""Device files of the driver, on Linux and under Windows' subsystem for Linux."""
DISTRIBUTIONS = {"torch-tensorrt": "tensorrt", "torch-tensorrt-rtx": "tensorrt_rtx"}
"""The packages that build engines, each with the module that runs its engines."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, as its driver names it."""

    name: str
    capability: str
    """Compute capability, such as 9.0."""
    driver: str
    """Version of the driver."""


def nvidia_device() -> bool:
    """Whether there is an NVIDIA driver. No library is asked, so torch is not imported where there is no driver."""
    return any(path.exists() for path in DEVICES)


def cuda_works() -> bool:
    """Whether torch can use the device."""
    import torch

    return torch.cuda.is_available()


def visible_gpus() -> int:
    """The number of GPUs that torch sees."""
    import torch

    return torch.cuda.device_count()


def torch_gpu() -> Gpu:
    """The GPU that torch uses, with torch's release of CUDA in the driver's place: torch brings its own kernels."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return Gpu(torch.cuda.get_device_name(), f"{major}.{minor}", f"CUDA {torch.version.cuda}")


def this_gpu() -> Gpu:
    """The GPU that torch uses.

    Raises:
        EngineBuildError: the driver does not answer.
    """
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        try:
            driver = str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise EngineBuildError(f"the driver's version cannot be read: {error}") from error
    major, minor = torch.cuda.get_device_capability()
    return Gpu(torch.cuda.get_device_name(), f"{major}.{minor}", driver)


def installed_distribution() -> str | None:
    """The installed package that builds engines, `torch-tensorrt` or `torch-tensorrt-rtx`; None if there is none."""
    for name in DISTRIBUTIONS:
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return name
    return None


def tensorrt_runtime(distribution: str) -> Any:
    """The module that runs the engines of `distribution`.

    Raises:
        TensorRTError: it is installed, but cannot be imported.
    """
    name = DISTRIBUTIONS[distribution]
    try:
        return import_module(name)
    except (ImportError, OSError) as error:  # OSError: a library that is missing or of another version
        raise TensorRTError(f"{distribution} is installed, but {name} cannot be imported: {error}") from error
