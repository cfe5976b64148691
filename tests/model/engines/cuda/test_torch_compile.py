"""Whether torch.compile can run, its limit of time, and its results in another process's cache."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from model.engines.base import BuildTimeout, EngineError
from model.engines.child import convert_in_child
from model.engines.cuda.torch_compile import (
    COMPILED,
    CompileError,
    build_within,
    load_compiled_graphs,
    one_compiler_thread,
    reason_not_to_compile,
    use_compiler_folder,
)
from model.engines.job import ConversionJob, ModelSpec


@pytest.mark.parametrize(
    ("modules", "programs", "environment", "headers", "reason"),
    [
        (["triton"], ["gcc"], {}, True, None),
        (["triton"], ["clang"], {}, True, None),
        (["triton"], ["my-cc"], {"CC": "my-cc"}, True, None),
        (["triton"], ["gcc"], {"CC": "my-cc"}, True, "there is no C compiler (CC=my-cc), which Triton needs"),
        (["triton"], [], {}, True, "there is no C compiler (gcc or clang), which Triton needs"),
        ([], ["gcc"], {}, True, "the package triton is not installed"),
        (["triton"], ["gcc"], {}, False, "Python's headers are missing (HEADERS/Python.h), which Triton needs"),
    ],
)
def test_what_is_missing(
    modules: list[str],
    programs: list[str],
    environment: dict[str, str],
    headers: bool,
    reason: str | None,
    tmp_path: Path,
) -> None:
    if headers:
        (tmp_path / "Python.h").touch()

    def find(among: list[str]) -> Callable[[str], str | None]:
        return lambda name: name if name in among else None

    found = reason_not_to_compile(environment, find(modules), find(programs), tmp_path)
    assert found == (reason and reason.replace("HEADERS", str(tmp_path)))


def test_the_compilers_folder_is_in_the_engine_cache_unless_the_operator_names_another(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    use_compiler_folder(tmp_path, environment)
    assert environment == {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    environment = {"TORCHINDUCTOR_CACHE_DIR": "/elsewhere"}
    use_compiler_folder(tmp_path, environment)
    assert environment == {"TORCHINDUCTOR_CACHE_DIR": "/elsewhere"}


def test_what_is_built_in_time_is_returned() -> None:
    assert build_within(60, lambda proceed: proceed() or 7) == 7


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (EngineError("out of memory"), EngineError("out of memory")),
        (ValueError("no such kernel\nadvice"), CompileError("torch.compile has failed: no such kernel")),
        (AssertionError(), CompileError("torch.compile has failed: AssertionError")),
    ],
)
def test_what_fails_is_said(raised: Exception, expected: Exception) -> None:
    def build(proceed: Callable[[], None]) -> None:
        raise raised

    with pytest.raises(type(expected)) as error:
        build_within(60, build)
    assert str(error.value) == str(expected)


def test_what_takes_too_long_is_told_to_end() -> None:
    released, ended = threading.Event(), threading.Event()

    def build(proceed: Callable[[], None]) -> None:
        assert threading.current_thread().daemon, "the process must not wait for it"
        released.wait(60)
        try:
            proceed()
        except BuildTimeout:
            ended.set()

    with pytest.raises(BuildTimeout):
        build_within(0.01, build)
    released.set()
    assert ended.wait(60)


@pytest.mark.live
def test_a_child_process_is_ended_at_its_deadline(probe: Path, tmp_path: Path) -> None:
    """Its import of torch alone takes longer than this."""
    job = ConversionJob(ModelSpec(str(probe)), "openvino")
    with pytest.raises(BuildTimeout, match="its time was over"):
        convert_in_child(job, tmp_path, lambda text: None, time.monotonic() + 0.05)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.live
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own code, as Inductor imports it
def test_results_of_the_compiler_are_found_again_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real compilation, of one line: a cache that was empty has it after the artifacts were loaded."""
    from torch._dynamo.utils import counters

    class Line(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 + 1

    def run(folder: str) -> tuple[int, int]:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / folder))
        torch.compiler.reset()
        counters.clear()
        with one_compiler_thread(), torch.inference_mode():
            assert torch.compile(Line(), fullgraph=True, dynamic=True)(torch.ones(3)).tolist() == [3, 3, 3]
        return counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"]

    assert run("first") == (0, 1)
    results = torch.compiler.save_cache_artifacts()
    assert results is not None
    (tmp_path / COMPILED).write_bytes(results[0])
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "second"))
    load_compiled_graphs(tmp_path)
    assert run("second") == (1, 0)
