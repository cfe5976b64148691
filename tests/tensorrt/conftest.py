"""Building TensorRT engines where there is no GPU: what asks the driver gets an answer from here, in these tests alone.

They need an environment of their own (`make test-tensorrt`), and are not collected in any other.
"""

import sys
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--models", default="mae_tiny", help="presets to build engines of, separated by commas")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "preset" in metafunc.fixturenames:
        metafunc.parametrize("preset", metafunc.config.getoption("models").split(","), scope="module")


class SerializedEngine:
    """What deserialising would give, had there been a driver: the bytes alone."""

    def __init__(self, content: Any) -> None:
        self.content = bytes(content)

    def serialize(self) -> bytes:
        return self.content

    def get_aliased_input_tensor(self, name: str) -> None:
        return None


def stand_in_for_the_driver() -> None:
    """Lets torch-tensorrt be imported, and build; nothing here can run an engine."""
    torch.cuda.get_device_capability = lambda *of: (9, 0)  # type: ignore[assignment]
    torch.cuda.current_device = lambda: 0
    torch.cuda.device_count = lambda: 1
    torch.cuda.mem_get_info = lambda *of: (80 << 30, 80 << 30)  # type: ignore[assignment]

    import torch_tensorrt  # noqa: F401  # first: it gives the bindings their name
    import torch_tensorrt.dynamo.conversion._TRTInterpreter as interpreter

    for name, module in list(sys.modules.items()):
        if name.startswith("torch_tensorrt") and getattr(module, "to_torch_device", None):
            module.to_torch_device = lambda device=None: torch.device("cpu")  # type: ignore[attr-defined]

    real = interpreter.trt

    class Runtime:
        def __init__(self, *of: object) -> None:
            pass

        def deserialize_cuda_engine(self, content: Any) -> SerializedEngine:
            return SerializedEngine(content)

    interpreter.trt = SimpleNamespace(**{name: getattr(real, name) for name in dir(real)} | {"Runtime": Runtime})


collect_ignore_glob: list[str] = []
if find_spec("torch_tensorrt") is None:
    collect_ignore_glob.append("test_*")
else:
    stand_in_for_the_driver()  # before the tests are imported: they import torch_tensorrt
