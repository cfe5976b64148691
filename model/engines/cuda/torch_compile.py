"""torch.compile for a GPU: whether it can run here, and compiling in a child process, whose results are kept.

The child does all that the server does afterwards: it records CUDA graphs of the compiled graphs on one lane. So the
server finds every result of the compiler in its cache, and a kernel that breaks the device breaks the child alone.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch

from model.checkpoints.checkpoint import Checkpoint
from model.engines.base import BuildTimeout, EngineBuildError, EngineError, Precision
from model.engines.cuda.engine import DeviceEngine
from model.engines.cuda.torch_graphs import CompiledTorchGraphs, TorchGraphs
from model.engines.job import LoadedModel
from model.engines.reference import describe_torch_engine

COMPILED = "inductor.bin"
"""The file of an entry in the engine cache: all that torch.compile has made, in torch's own format."""
FOLDER = "inductor"
"""Where torch.compile keeps its files, inside the engine cache."""
COMPILER_FOLDER = "TORCHINDUCTOR_CACHE_DIR"
"""The environment variable with that folder, which torch.compile reads at each use."""
T = TypeVar("T")


class CompileError(EngineBuildError):
    """torch.compile has failed; the graphs run without it."""


def reason_not_to_compile(
    environment: Mapping[str, str] = os.environ,
    find_module: Callable[[str], object] = find_spec,
    find_program: Callable[[str], str | None] = shutil.which,
    headers: Path | None = None,
) -> str | None:
    """Why torch.compile cannot work here: Triton, which it needs on a GPU, compiles C. None if it can work.

    Args:
        environment: may name the compiler, as CC.
        find_module: finds an importable module.
        find_program: finds a program on the path.
        headers: the folder of Python's headers; by default this interpreter's.
    """
    if not find_module("triton"):
        return "the package triton is not installed"
    named = environment.get("CC")
    if not any(map(find_program, [named] if named else ["gcc", "clang"])):
        return f"there is no C compiler ({f'CC={named}' if named else 'gcc or clang'}), which Triton needs"
    folder = headers or Path(sysconfig.get_paths()["include"])
    if not (folder / "Python.h").is_file():
        return f"Python's headers are missing ({folder / 'Python.h'}), which Triton needs"
    return None


def write_compiled_graphs(
    checkpoint: Checkpoint,
    model: LoadedModel,
    precision: Precision,
    max_batch_size: int,
    folder: Path,
    progress: Callable[[str], None],
    device: str = "cuda",
) -> None:
    """Compiles the graphs on the device, records them once, and writes what the compiler made to `folder`.

    Args:
        checkpoint: the weights.
        model: the model's properties.
        precision: the precision of the matrix products.
        max_batch_size: the largest batch that is recorded.
        folder: exists.
        progress: called with a sentence at every step.
        device: the device to compile for.

    Raises:
        CompileError: torch.compile has failed, or the device cannot run the graphs.
    """
    progress(f"compiling {model.config.name} by torch.compile")
    info = describe_torch_engine(model, precision, device, max_batch_size)
    try:
        with _compiler_folder(folder / FOLDER):
            DeviceEngine(CompiledTorchGraphs(TorchGraphs(checkpoint, info)), info, cuda_graphs=True)
            results = torch.compiler.save_cache_artifacts()
    except Exception as error:  # a compiler may raise anything
        raise CompileError(f"torch.compile has failed: {_first_line(error)}") from error
    if results is None:
        raise CompileError("torch.compile has kept nothing")
    (folder / COMPILED).write_bytes(results[0])


def load_compiled_graphs(folder: Path) -> None:
    """Puts what `write_compiled_graphs` wrote into the compiler's cache, so that compiling finds it."""
    torch.compiler.load_cache_artifacts((folder / COMPILED).read_bytes())


@contextmanager
def one_compiler_thread() -> Iterator[None]:
    """Keeps torch.compile from starting its pool of processes, which a compilation that is kept does not need."""
    from torch._inductor import config  # here: it takes a second to import

    with config.patch(compile_threads=1):
        yield


@contextmanager
def _compiler_folder(folder: Path) -> Iterator[None]:
    """Has torch.compile keep its files in `folder`, which is removed afterwards.

    A compiler that is killed leaves cut files, and torch.compile would take them for good ones the next time. So a
    process that may be killed has a folder of its own.
    """
    before = os.environ.get(COMPILER_FOLDER)
    os.environ[COMPILER_FOLDER] = str(folder.absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ[COMPILER_FOLDER]
        else:
            os.environ[COMPILER_FOLDER] = before
        shutil.rmtree(folder, ignore_errors=True)


def use_compiler_folder(engine_cache: Path, environment: Any = os.environ) -> None:
    """Has torch.compile keep its files in the engine cache, in this process and its children.

    An operator's own TORCHINDUCTOR_CACHE_DIR stays.
    """
    environment.setdefault(COMPILER_FOLDER, str(engine_cache.absolute() / FOLDER))


def build_within(seconds: float, build: Callable[[Callable[[], None]], T]) -> T:
    """Calls `build` in a thread, for at most so many seconds, and returns what it returns.

    Args:
        seconds: the longest time to wait. A compilation cannot be ended from outside, so the thread may go on for a
            while; it is a daemon, and what it builds is dropped.
        build: is given a function to call between its steps, which raises once the time is over.

    Raises:
        BuildTimeout: the time is over.
        CompileError: `build` has failed.
        EngineError: the device has failed.
    """
    over, done = threading.Event(), threading.Event()
    results: list[T] = []
    errors: list[Exception] = []

    def proceed() -> None:
        if over.is_set():
            raise BuildTimeout("its time was over")

    def run() -> None:
        try:
            results.append(build(proceed))
        except Exception as error:
            errors.append(error)
        done.set()

    threading.Thread(target=run, name="compile", daemon=True).start()
    if not done.wait(max(0.0, seconds)):
        over.set()
        raise BuildTimeout("its time was over")
    if not errors:
        return results[0]
    if isinstance(errors[0], EngineError):
        raise errors[0]
    raise CompileError(f"torch.compile has failed: {_first_line(errors[0])}") from errors[0]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
