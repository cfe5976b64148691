"""The choice of the backend: the operator's, or else the fastest that this machine can run."""

from __future__ import annotations

from importlib.util import find_spec

from model.engines.base import Backend, BackendChoice, EngineBuildError
from model.engines.cuda import identity

NO_TENSORRT = f"neither {' nor '.join(identity.DISTRIBUTIONS)} is installed"


def choose_backend(wanted: Backend) -> BackendChoice:
    """Chooses a backend for this machine: `auto` is TensorRT, else torch on a GPU, else OpenVINO, else torch.

    torch is imported only where there is an NVIDIA device.

    Raises:
        EngineBuildError: OpenVINO or TensorRT was asked for by name, and cannot run here.
    """
    if wanted == "openvino":
        if not find_spec("openvino"):
            raise EngineBuildError("BACKEND=openvino, but the package openvino is not installed")
        return BackendChoice("openvino", "cpu")
    missing = _missing_gpu()
    if wanted == "tensorrt":
        reason = missing or (None if identity.installed_distribution() else NO_TENSORRT)
        if reason:
            raise EngineBuildError(f"BACKEND=tensorrt, but {reason}")
        return BackendChoice("tensorrt", "cuda")
    if missing is None:
        if wanted == "torch":
            return BackendChoice("torch", "cuda")
        return (
            BackendChoice("tensorrt", "cuda")
            if identity.installed_distribution()
            else BackendChoice("torch", "cuda", NO_TENSORRT)
        )
    fallback = missing if identity.nvidia_device() else None
    if wanted == "torch":
        return BackendChoice("torch", "cpu", fallback)
    if find_spec("openvino"):
        return BackendChoice("openvino", "cpu", fallback)
    return BackendChoice("torch", "cpu", fallback or "the package openvino is not installed")


def _missing_gpu() -> str | None:
    """Why there is no usable GPU; None if there is one."""
    if not identity.nvidia_device():
        return "there is no NVIDIA device"
    return None if identity.cuda_works() else "there is an NVIDIA device, but torch cannot use it"
