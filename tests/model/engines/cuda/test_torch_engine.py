"""Torch on a GPU: the mode is measured once and kept, and torch.compile never costs more than it may."""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.engines.base import EngineBuildError, EngineInfo
from model.engines.build import build
from model.engines.cuda import torch_engine
from model.engines.parity import ParityError
from model.engines.settings import EngineSettings
from tests.model.engines.cuda.conftest import Machine
from tests.support.engines import with_changes
from tests.support.pretend_cuda import Graph

pytestmark = pytest.mark.slow


@pytest.fixture
def compiler(machine: Machine) -> Machine:
    """A machine with a C compiler."""
    machine.no_compiler = None
    return machine


@pytest.fixture
def settings(tmp_path: Path, weights: str) -> EngineSettings:
    return EngineSettings(engine_cache=tmp_path / "cache", weights=weights, max_batch=12, lanes=1, backend="torch")


def served(settings: EngineSettings) -> EngineInfo:
    info = build(settings).info
    assert (info.backend, info.precision) == ("torch", "fp16")
    assert info.parity is not None and info.parity.cosine >= 0.999
    return info


@pytest.mark.parametrize(
    ("rates", "mode"),
    [
        ({"eager": 100, "cuda graphs": 200, "compile": 300}, "compile"),
        ({"eager": 100, "cuda graphs": 200, "compile": 209}, "cuda graphs"),
        ({"eager": 100, "cuda graphs": 104, "compile": 104}, "eager"),
    ],
)
def test_the_fastest_mode_serves_and_the_second_start_measures_nothing(
    compiler: Machine, settings: EngineSettings, rates: Any, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    compiler.rates = rates
    caplog.set_level(logging.INFO)
    info = served(settings)
    assert info.torch is not None and info.torch.mode == mode and info.torch.left_out == {}
    assert info.torch.images_per_s == {name: {1: rate, 12: 2 * rate} for name, rate in rates.items()}
    assert compiler.measured == [["eager", "cuda graphs", "compile"]]
    assert [(job.target, job.precision, job.max_batch_size) for job in compiler.jobs] == [("torch", "fp16", 12)]
    assert f"torch on Pretend 9000 runs in mode {mode}: images/s in batches of 1 and 12: eager 100" in caplog.text
    entry = settings.engine_cache / str(info.entry)
    assert (mode == "compile") == (info.entry is not None) == entry.joinpath("inductor.bin").is_file()

    second = served(settings)
    assert (second.torch, second.entry) == (info.torch, info.entry)
    assert len(compiler.measured) == len(compiler.jobs) == 1
    assert compiler.loaded == [b"compiled"] * (2 if mode == "compile" else 1)


def test_the_attention_kernel_is_shown(
    machine: Machine, settings: EngineSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    info = served(settings)
    assert info.attention == dict.fromkeys(("encoder", "decoder", "encoder_padded"), "flash")
    assert "attention kernels in fp16: encoder: flash, decoder: flash" in caplog.text


def test_without_a_c_compiler_cuda_graphs_serve_and_the_reason_is_shown(
    machine: Machine, settings: EngineSettings, caplog: pytest.LogCaptureFixture
) -> None:
    info = served(settings)
    assert info.torch is not None and info.torch.mode == "cuda graphs"
    assert info.torch.left_out == {"compile": "there is no C compiler"}
    assert machine.jobs == [] and machine.measured == [["eager", "cuda graphs"]]
    assert "torch serves without mode compile: there is no C compiler" in caplog.text
    machine.no_compiler = None
    info = served(settings)
    assert info.torch is not None and info.torch.mode == "compile", "a compiler was installed since"


def test_the_operator_may_name_the_mode(machine: Machine, settings: EngineSettings) -> None:
    for cuda_graphs, mode in ((True, "cuda graphs"), (False, "eager")):
        info = served(with_changes(settings, cuda_graphs=cuda_graphs))
        assert info.torch is not None and (info.torch.mode, info.torch.images_per_s) == (mode, {})
    assert machine.measured == [] and machine.jobs == []
    assert not list(settings.engine_cache.glob("*.json"))


# --- the time that torch.compile may take


def test_a_child_process_that_takes_too_long_is_left_out_and_not_tried_again(
    compiler: Machine, settings: EngineSettings
) -> None:
    compiler.too_slow = True
    for _ in range(2):
        info = served(settings)
        assert info.torch is not None and (info.torch.mode, info.torch.left_out) == (
            "cuda graphs",
            {"compile": "torch.compile takes longer than COMPILE_TIMEOUT_S, 180 s"},
        )
    assert len(compiler.jobs) == 1
    compiler.too_slow = False
    info = served(with_changes(settings, compile_timeout_s=600))
    assert info.torch is not None and info.torch.mode == "compile", "the limit was raised"


def test_loading_that_takes_too_long_does_not_delay_the_start(compiler: Machine, settings: EngineSettings) -> None:
    """The compiler finds nothing of what the child has made, and goes on for longer than the server may wait."""
    released, calls = threading.Event(), []

    def compile_slowly(graph: torch.nn.Module) -> Callable[..., Any]:
        def run(*inputs: torch.Tensor) -> Any:
            if threading.current_thread().name == "compile":
                released.wait(60)
            calls.append(len(inputs[0]))
            return graph(*inputs)

        return run

    compiler.alter_compiled = compile_slowly
    short = with_changes(settings, compile_timeout_s=0.5)
    info = served(short)
    assert info.torch is not None and info.torch.mode == "cuda graphs"
    assert info.torch.left_out == {"compile": "torch.compile takes longer than COMPILE_TIMEOUT_S, 0.5 s"}
    before = len(calls)
    released.set()
    for thread in threading.enumerate():
        if thread.name == "compile":
            thread.join(60)
    assert len(calls) - before <= 3, "the thread ends at its next step: two runs and a recording of one size"


def test_without_time_it_is_not_tried(compiler: Machine, settings: EngineSettings) -> None:
    info = served(with_changes(settings, compile_timeout_s=0))
    assert info.torch is not None and info.torch.left_out == {"compile": "COMPILE_TIMEOUT_S is 0"}
    assert compiler.jobs == []


# --- what fails


def fail(*inputs: object) -> Any:
    raise RuntimeError("no such kernel\nand a page of advice")


@pytest.mark.parametrize("where", ["in the child process", "in the server"])
def test_a_compiler_that_fails_is_left_out(compiler: Machine, settings: EngineSettings, where: str) -> None:
    made: list[object] = []

    def alter(graph: torch.nn.Module) -> Any:
        made.append(graph)
        return fail if where == "in the child process" or len(made) > 2 else graph

    compiler.alter_compiled = alter
    info = served(settings)
    assert info.torch is not None and info.torch.mode == "cuda graphs"
    assert info.torch.left_out == {"compile": "torch.compile has failed: no such kernel"}


def test_compiled_graphs_with_other_numbers_never_serve(compiler: Machine, settings: EngineSettings) -> None:
    class Shifted(torch.nn.Module):
        def __init__(self, graph: torch.nn.Module) -> None:
            super().__init__()
            self.graph = graph

        def forward(self, *inputs: torch.Tensor) -> Any:
            first, second = self.graph(*inputs)
            return (
                (first + torch.arange(len(first))[:, None, None], second)
                if first.is_floating_point()
                else (first, second)
            )

    compiler.alter_compiled = Shifted
    info = served(settings)
    assert info.torch is not None and info.torch.mode == "cuda graphs"
    assert "embeddings in batches of 12 differ from eager float32" in info.torch.left_out["compile"]


def test_a_kept_choice_that_fails_now_is_replaced_for_this_start(compiler: Machine, settings: EngineSettings) -> None:
    assert served(settings).entry
    compiler.alter_compiled = lambda graph: fail
    info = served(settings)
    assert info.torch is not None and info.torch.mode == "cuda graphs" and "compile" in info.torch.left_out
    compiler.alter_compiled = lambda graph: graph
    info = served(settings)
    assert info.torch is not None and info.torch.mode == "compile"


def test_the_process_that_may_be_killed_has_a_compiler_folder_of_its_own(
    compiler: Machine, settings: EngineSettings
) -> None:
    """A compiler that is killed leaves cut files, which another process would take for good ones."""
    folders: list[Path] = []

    def alter(graph: torch.nn.Module) -> torch.nn.Module:
        folders.append(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]))
        folders[-1].mkdir(parents=True, exist_ok=True)
        (folders[-1] / "kernel.so").touch()
        return graph

    compiler.alter_compiled = alter
    entry = settings.engine_cache / str(served(settings).entry)
    assert len(set(folders)) == 2, "the child's and the server's"
    assert not folders[0].exists() and folders[-1].exists()
    assert not (entry / "inductor").exists() and (entry / "inductor.bin").exists()


def test_a_damaged_entry_is_compiled_again(compiler: Machine, settings: EngineSettings) -> None:
    entry = settings.engine_cache / str(served(settings).entry)
    (entry / "inductor.bin").write_bytes(b"damaged")
    assert served(settings).entry == entry.name
    assert len(compiler.jobs) == 2 and compiler.loaded == [b"compiled"] * 2


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "the GPU has not enough memory"),
        (torch.AcceleratorError("CUDA error: operation not permitted when stream is capturing", 900), "has failed"),
        (RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture"), "Cannot copy"),
    ],
)
def test_where_nothing_can_be_recorded_eager_serves(
    machine: Machine, settings: EngineSettings, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def refuse(self: Graph) -> None:
        raise error

    monkeypatch.setattr(Graph, "__init__", refuse)
    info = served(settings)
    assert info.torch is not None and info.torch.mode == "eager"
    assert message in info.torch.left_out["cuda graphs"]
    with pytest.raises((EngineBuildError, RuntimeError), match=message):  # by name it is not replaced
        build(with_changes(settings, cuda_graphs=True))


def test_a_lost_device_ends_the_start(
    machine: Machine, settings: EngineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Graph) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700)

    monkeypatch.setattr(Graph, "__init__", refuse)
    monkeypatch.setattr(torch_engine, "_device_is_lost", lambda device: True)
    with pytest.raises(EngineBuildError, match=r"the GPU has failed: .*illegal memory access"):
        build(settings)


def test_wrong_numbers_of_the_model_itself_stop_the_start(machine: Machine, settings: EngineSettings) -> None:
    with pytest.raises(ParityError, match="embeddings in batches of 1 differ"):
        build(with_changes(settings, parity_cosine=1))


# --- several


def test_the_first_of_several_processes_decides(
    compiler: Machine, settings: EngineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process keeps its choice while this one measures."""
    measure = torch_engine.measure_modes

    def measure_slowly(engines: Any) -> Any:
        rates = measure(engines)
        monkeypatch.setattr(torch_engine, "measure_modes", measure)
        compiler.rates = {"eager": 500, "cuda graphs": 100, "compile": 100}
        other = served(settings)
        assert other.torch is not None and other.torch.mode == "eager"
        return rates

    monkeypatch.setattr(torch_engine, "measure_modes", measure_slowly)
    info = served(settings)
    assert info.torch is not None and info.torch.mode == "eager"
    assert len(compiler.measured) == 2


@pytest.mark.parametrize("backend", ["torch", "tensorrt"])
def test_a_process_that_sees_several_gpus_says_that_it_uses_the_first(
    machine: Machine, settings: EngineSettings, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = "GPUs are visible, and this process uses the first: start one process for each GPU"
    asked = with_changes(settings, backend=backend, cuda_graphs=False)
    build(asked)
    assert said not in caplog.text
    machine.gpus = 4
    build(asked)
    assert f"4 {said}" in caplog.text


def test_every_ingredient_makes_another_choice(
    compiler: Machine, settings: EngineSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept() -> int:
        served_now = served(changed)
        assert served_now.torch is not None
        return len(list(settings.engine_cache.glob("torch-mode-*.json")))

    compiler.rates = {"eager": 300, "cuda graphs": 100, "compile": 100}
    changed = settings
    assert kept() == 1
    for number, change in enumerate(({"lanes": 2}, {"parity_cosine": 0.99}), start=2):
        changed = with_changes(settings, **change)
        assert kept() == number
    changed = settings
    monkeypatch.setattr(torch_engine.identity, "torch_gpu", lambda: torch_engine.identity.Gpu("Other", "8.0", "x"))
    assert kept() == 4


def test_the_limit_counts_from_the_start_of_the_child_process(compiler: Machine, settings: EngineSettings) -> None:
    start = time.monotonic()
    served(with_changes(settings, compile_timeout_s=30))
    (deadline,) = compiler.deadlines
    assert deadline is not None and start < deadline - 30 < time.monotonic()
