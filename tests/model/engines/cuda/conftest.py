"""A machine that seems to have a GPU: stand-ins for the driver, TensorRT, the child process and the clock."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoints import checkpoint
from model.checkpoints.checkpoint import Checkpoint
from model.config import Preprocessing
from model.engines import context, convert
from model.engines.base import BuildTimeout, Engine, TorchMode
from model.engines.context import BuildContext
from model.engines.cuda import build as module
from model.engines.cuda import identity, tensorrt_build, torch_compile, torch_engine
from model.engines.cuda.identity import Gpu
from model.engines.cuda.profiles import decoder_profiles, encoder_profiles, padded_profiles
from model.engines.export import build_graphs
from model.engines.job import ConversionJob
from model.nn.vit import MaskedAutoencoder
from tests.support import pretend_tensorrt
from tests.support.engines import NARROW

CARD = Gpu("Pretend 9000", "9.0", "580.65")


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "narrow.safetensors"
    tensors = dict(MaskedAutoencoder(NARROW).state_dict())
    checkpoint.save(path, Checkpoint(NARROW, Preprocessing(), "mae-serve", tensors))
    return str(path)


class Machine:
    """One with a GPU; `jobs` are the conversions it was asked for, `alter` changes what TensorRT makes of a graph.

    torch.compile returns a graph that `alter_compiled` may change; `rates` are what measuring finds.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.jobs: list[ConversionJob] = []
        self.distribution: str | None = "torch-tensorrt"
        self.failure: Exception | None = None
        self.import_failure: Exception | None = None
        self.written = lambda name: name
        self.alter: Callable[[str, torch.nn.Module], torch.nn.Module] = lambda name, graph: graph
        self.deadlines: list[float | None] = []
        self.gpus = 1
        self.no_compiler: str | None = "there is no C compiler"
        self.too_slow = False
        """Whether the child process needs longer than it may."""
        self.rates: dict[str, float] = {"eager": 100, "cuda graphs": 200, "compile": 300}
        self.measured: list[list[str]] = []
        """The modes that were measured, each time."""
        self.loaded: list[bytes] = []
        """What the compiler's cache was given."""
        self.alter_compiled: Callable[[torch.nn.Module], Any] = lambda graph: graph
        self._graphs: dict[str, torch.nn.Module] = {}
        self._profiles: dict[str, Any] = {}
        honest = BuildContext.describe
        for owner, name, stand_in in (
            (identity, "DEVICES", (tmp_path,)),
            (identity, "cuda_works", lambda: True),
            (identity, "installed_distribution", lambda: self.distribution),
            (identity, "tensorrt_runtime", self._runtime),
            (identity, "this_gpu", lambda: CARD),
            (identity, "torch_gpu", lambda: CARD),
            (identity, "visible_gpus", lambda: self.gpus),
            (torch_engine, "reason_not_to_compile", lambda: self.no_compiler),
            (torch_engine, "measure_modes", self._measure),
            (torch, "compile", self._compile),
            (torch.compiler, "save_cache_artifacts", lambda: (b"compiled", None)),
            (torch.compiler, "load_cache_artifacts", self.loaded.append),
            (torch_compile, "write_compiled_graphs", partial(torch_compile.write_compiled_graphs, device="cpu")),
            (module, "version", lambda name: "2.14.0" if "tensorrt" in name else version(name)),
            # Everything but the tensors' own device believes in the GPU.
            (
                BuildContext,
                "describe",
                lambda *args, **more: honest(*args, **more).model_copy(update={"device": "cpu"}),
            ),
            (context, "convert_in_child", self._convert),
            (tensorrt_build, "build_engines", self._build_engines),
        ):
            monkeypatch.setattr(owner, name, stand_in)
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiler"))

    def _measure(self, engines: Mapping[TorchMode, Engine]) -> dict[TorchMode, dict[int, float]]:
        self.measured.append([*engines])
        return {mode: {1: self.rates[mode], 12: 2 * self.rates[mode]} for mode in engines}

    def _compile(self, graph: torch.nn.Module, fullgraph: bool, dynamic: bool) -> Any:
        assert fullgraph and dynamic
        return self.alter_compiled(graph)

    def _runtime(self, distribution: str) -> Any:
        if self.import_failure:
            raise self.import_failure
        return pretend_tensorrt.runtime(self._graphs, self._profiles)

    def _convert(
        self, job: ConversionJob, folder: Path, progress: Callable[[str], None], deadline: float | None
    ) -> None:
        self.jobs.append(job)
        self.deadlines.append(deadline)
        if deadline is not None and (self.too_slow or time.monotonic() > deadline):
            raise BuildTimeout("the conversion was ended: its time was over")
        convert.convert(job, folder, progress)

    def _build_engines(
        self, made: Any, config: Any, pre: Any, precision: Any, most: int, folder: Path, say: Any
    ) -> None:
        if self.failure:
            raise self.failure
        for name, graph in build_graphs(made, config, pre, precision, to_bytes=False, padded=most > 1).items():
            self._graphs[name] = self.alter(name, graph)
            (folder / f"{name}.engine").write_text(self.written(name))
        self._profiles |= {
            "encoder": encoder_profiles(config, most),
            "encoder_padded": padded_profiles(config, most),
            "decoder": decoder_profiles(config, most),
        }


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: None) -> Machine:
    return Machine(monkeypatch, tmp_path)
