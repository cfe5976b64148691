"""Building an engine by torch on an NVIDIA GPU: the mode is measured once, and kept in the engine cache."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

import torch

from model.checkpoints.checkpoint import Checkpoint
from model.engines.base import (
    BuildTimeout,
    EngineBuildError,
    EngineError,
    FatalEngineError,
    MeasuredMode,
    TorchMode,
)
from model.engines.cache import EngineCache, fingerprint
from model.engines.context import BuildContext, installed_versions
from model.engines.cuda import identity
from model.engines.cuda.attention import attention_kernels
from model.engines.cuda.build import device_precision, device_sizes
from model.engines.cuda.engine import DeviceEngine, device_errors
from model.engines.cuda.torch_compile import (
    build_within,
    load_compiled_graphs,
    one_compiler_thread,
    reason_not_to_compile,
    use_compiler_folder,
)
from model.engines.cuda.torch_graphs import CompiledTorchGraphs, TorchGraphs
from model.engines.cuda.torch_mode import allowed_modes, choose_mode, measure_modes
from model.engines.fingerprint import code_digest
from model.engines.job import ConversionJob, LoadedModel
from model.engines.measure import keep_choice, read_choice
from model.engines.outputs import EngineOutputs

log = logging.getLogger(__name__)


def build_torch_on_gpu(
    context: BuildContext, checkpoint: Checkpoint, model: LoadedModel, reference: EngineOutputs
) -> DeviceEngine:
    """Puts the model onto the GPU by torch, in the mode that CUDA_GRAPHS names or else in the fastest.

    Every mode has passed its parity check before it is measured. A mode that fails is left out, unless no other is
    allowed. torch.compile delays the build by COMPILE_TIMEOUT_S at most.

    Raises:
        EngineBuildError: the GPU cannot hold or run the model.
        ParityError: the engine does not compute what the model computes.
    """
    try:
        modes = _Modes(context, checkpoint, model, reference)
        engine, choice = _build_fastest(context, modes)
    except EngineError as error:
        raise EngineBuildError(str(error)) from error
    log.info("torch on %s runs in mode %s: %s", modes.gpu.name, choice.mode, choice.reason)
    entry = modes.entry if choice.mode == "compile" else None
    engine.info = engine.info.model_copy(update={"torch": choice, "attention": modes.attention, "entry": entry})
    return engine


def _build_fastest(context: BuildContext, modes: _Modes) -> tuple[DeviceEngine, MeasuredMode]:
    """Builds the engine in the mode that an earlier start chose, or else in the one that is measured to be fastest."""
    cache = EngineCache(context.settings.engine_cache)
    kept = read_choice(cache, modes.choice_name, MeasuredMode) if len(modes.allowed) > 1 else None
    if kept is not None and (engine := modes.build(kept.mode)) is not None:
        return engine, kept
    # A mode that has failed just now is not tried again; all others are, whatever the choice of an earlier start was.
    engines = {mode: engine for mode in modes.allowed if (engine := modes.build(mode)) is not None}
    rates = {}
    if len(engines) > 1:
        context.progress(f"measuring which is fastest: {', '.join(engines)}")
        rates = measure_modes(engines)
    best = choose_mode(rates) if rates else next(iter(engines))
    choice = MeasuredMode(mode=best, images_per_s=rates, left_out=modes.left_out)
    if len(modes.allowed) > 1 and kept is None:
        earlier = keep_choice(cache, modes.choice_name, choice)
        choice = earlier if earlier.mode in engines else choice
    engine = engines[choice.mode]
    del engines
    torch.cuda.empty_cache()  # the buffers and recordings of the other modes
    return engine, choice


class _Modes:
    """The modes of one model on this GPU, and what all of them share: the weights, the info, the attention kernel."""

    def __init__(
        self, context: BuildContext, checkpoint: Checkpoint, model: LoadedModel, reference: EngineOutputs
    ) -> None:
        """Puts the weights onto the GPU.

        Raises:
            EngineError: the GPU cannot hold or run the model.
        """
        self._context = context
        self._reference = reference
        settings, precision = context.settings, device_precision(context)
        self.gpu = identity.torch_gpu()
        self.allowed = allowed_modes(settings.cuda_graphs)
        self.left_out: dict[TorchMode, str] = {}
        self._info = context.describe(
            model, precision, **device_sizes(context, model.config), libraries=_compiler_version()
        )
        self._job = ConversionJob(context.model, "torch", precision, self._info.preferred_batch)
        if "compile" in self.allowed and (reason := self._reason_not_to_compile()):
            self._leave_out("compile", reason)
        ingredients: dict[str, object] = {
            **asdict(context.model),
            "path": context.source.digest,
            "code": code_digest("torch"),
            "precision": precision,
            "max_batch_size": self._info.preferred_batch,
            "gpu": asdict(self.gpu),
            "versions": installed_versions() | _compiler_version(),
        }
        self.entry = f"torch-{fingerprint(ingredients)}"
        # The choice depends on more than the compiled graphs do. A raised limit tries torch.compile again.
        deciding = {
            "lanes": self._info.lanes,
            "tolerance": asdict(context.tolerance(self._info.computes)),
            "compile_timeout_s": settings.compile_timeout_s,
            "left_out": self.left_out,
        }
        self.choice_name = f"torch-mode-{fingerprint({**ingredients, **deciding})}"
        with device_errors():
            self._graphs = TorchGraphs(checkpoint, self._info)
            self.attention = attention_kernels(self._graphs.modules, model.config, self._info.device)
        kernels = ", ".join(f"{graph}: {kernel}" for graph, kernel in self.attention.items())
        log.info("attention kernels in %s: %s", precision, kernels or "the model has no attention")

    def build(self, mode: TorchMode) -> DeviceEngine | None:
        """Builds the engine in a mode and checks its parity; None, and the reason in `left_out`, if it cannot serve.

        Raises:
            EngineError: the only mode that is allowed, or the simplest one, cannot run; or the device is lost.
            ParityError: the same mode does not compute what the model computes.
        """
        if mode in self.left_out:
            return None
        try:
            engine = self._build_compiled() if mode == "compile" else self._build_plain(mode == "cuda graphs")
            self._context.check(engine, self._reference, (1, engine.info.preferred_batch))
        except (EngineError, EngineBuildError, RuntimeError) as error:  # what torch cannot record is a RuntimeError
            if mode == self.allowed[0] or (isinstance(error, FatalEngineError) and _device_is_lost(self._info.device)):
                raise
            self._leave_out(mode, str(error))
            return None
        return engine

    def _build_plain(self, cuda_graphs: bool) -> DeviceEngine:
        return DeviceEngine(self._graphs, self._info, cuda_graphs)

    def _build_compiled(self) -> DeviceEngine:
        """Has a child process compile the graphs, and loads what it has made, all within COMPILE_TIMEOUT_S."""
        settings = self._context.settings
        deadline = time.monotonic() + settings.compile_timeout_s
        use_compiler_folder(settings.engine_cache)
        try:
            folder = self._context.obtain_entry(self.entry, self._job, deadline)
            self._context.progress("loading the compiled graphs")
            load_compiled_graphs(folder)
            return build_within(deadline - time.monotonic(), self._record_compiled)
        except BuildTimeout as error:
            limit = f"COMPILE_TIMEOUT_S, {settings.compile_timeout_s:g} s"
            raise BuildTimeout(f"torch.compile takes longer than {limit}") from error

    def _record_compiled(self, proceed: Callable[[], None]) -> DeviceEngine:
        with one_compiler_thread():
            return DeviceEngine(CompiledTorchGraphs(self._graphs), self._info, True, proceed)

    def _reason_not_to_compile(self) -> str | None:
        return reason_not_to_compile() if self._context.settings.compile_timeout_s else "COMPILE_TIMEOUT_S is 0"

    def _leave_out(self, mode: TorchMode, reason: str) -> None:
        self.left_out[mode] = reason
        log.warning("torch serves without mode %s: %s", mode, reason)


def _device_is_lost(device: str) -> bool:
    """Whether the device does nothing any more: a recording may fail alone, and then the device goes on."""
    try:
        torch.zeros(1, device=device).cpu()
    except torch.OutOfMemoryError:
        return False
    except RuntimeError:
        return True
    return False


def _compiler_version() -> dict[str, str]:
    try:
        return {"triton": version("triton")}
    except PackageNotFoundError:
        return {}
