"""From settings to an engine that has passed the gate."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING

from model.checkpoints.heads import read_heads
from model.checkpoints.locate import locate
from model.engines import parity
from model.engines.backend import BackendChoice, choose_backend
from model.engines.base import Engine, EngineBuildError, EngineError, EngineInfo, Precision, TensorRTError
from model.engines.cache import fingerprint
from model.engines.context import BuildContext, gated, info_of, obtain
from model.engines.cpu import available_cpus
from model.engines.cuda import identity
from model.engines.entry import read_facts, read_reference
from model.engines.fingerprint import code_digest
from model.engines.job import ConversionJob, ModelSpec
from model.engines.openvino.build import build_openvino
from model.engines.reference import EAGER_BATCH, load_model, reference_engine
from model.engines.spec import EngineSpec

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)
GPU_BATCH, GPU_LANES = 64, 2
"""Two lanes, so that one's copies overlap the other's computing."""


def build(spec: EngineSpec, progress: Callable[[str], None] = log.info) -> Engine:
    """Loads or makes the engine, warms it up and compares it with eager float32.

    Where `spec.backend` is `auto` and TensorRT cannot build or load the model, torch serves on the GPU instead, and
    `EngineInfo.fallback` says why. An engine that computes something else is never replaced by another in silence.

    Args:
        spec: what to build.
        progress: told in words what is being done.

    Raises:
        WeightsError: the weights are missing, foreign or damaged.
        EngineBuildError: the engine cannot be made.
        ParityError: it can, but it does not compute what the model computes.
    """
    source = locate(spec.weights, spec.model)
    preset = None if source.is_preset(spec.model) else spec.model
    model = ModelSpec(str(source.path), preset, spec.norm_pix_loss, spec.image_size, spec.preprocess)
    plan = BuildContext(spec, source, model, _announced(choose_backend(spec.backend)), progress)
    try:
        engine = _build(plan)
    except TensorRTError as error:
        if spec.backend != "auto":
            raise
        choice = _announced(BackendChoice("torch", "cuda", f"TensorRT has failed: {error}"))
        engine = _build(BuildContext(spec, source, model, choice, progress))
    engine.heads = heads = read_heads(source.path)
    facts = {"head": heads.head and heads.head.config, "whitening": tuple(heads.whitening)}
    engine.info = engine.info.model_copy(update=facts)
    return engine


def tensorrt_ingredients(
    model: ModelSpec, digest: str, precision: Precision, most: int, card: identity.Gpu, distribution: str, runtime: str
) -> dict[str, object]:
    """All that an engine of TensorRT is made of, for its fingerprint.

    The config is what the weights and the operator's words (`model`) say; graphs and profiles are the code's, and the
    largest batch.

    Args:
        model: which model, and what the operator says of it.
        digest: SHA-256 of the weights.
        precision: of the products of matrices.
        most: the largest batch.
        card: the GPU.
        distribution: the package that builds.
        runtime: version of the module that runs.
    """
    return {
        **asdict(model),
        "path": digest,
        "code": code_digest(),
        "precision": precision,
        "most": most,
        "gpu": asdict(card),
        "distribution": distribution,
        "versions": {name: version(name) for name in ("torch", distribution)} | {"tensorrt": runtime},
    }


def _announced(choice: BackendChoice) -> BackendChoice:
    if choice.fallback:
        log.warning("serving by %s on %s: %s", choice.backend, choice.device, choice.fallback)
    return choice


def _build(plan: BuildContext) -> Engine:
    spec, backend = plan.spec, plan.choice.backend
    if spec.calibrate is not None and spec.precision not in ("int8", "auto"):
        raise EngineBuildError("photographs to calibrate on are for PRECISION=int8 or auto")
    if backend == "openvino":
        return build_openvino(plan)
    if spec.precision == "int8" or spec.calibrate is not None:
        raise EngineBuildError(
            f"PRECISION=int8 is for BACKEND=openvino; {backend} on {plan.choice.device} has fp32, bf16 and fp16"
        )
    if backend == "tensorrt":
        return _build_tensorrt(plan)
    return _build_torch(plan)


def _build_tensorrt(plan: BuildContext) -> Engine:
    from model.engines.cuda.engine import DeviceEngine
    from model.engines.cuda.tensorrt import TensorRTGraphs

    spec, source = plan.spec, plan.source
    distribution = identity.installed_distribution()
    assert distribution is not None, "choose_backend has looked"
    runtime, card = identity.tensorrt_runtime(distribution), identity.this_gpu()
    precision = "fp16" if spec.precision == "auto" else spec.precision
    most, lanes = spec.max_batch or GPU_BATCH, spec.lanes or GPU_LANES
    ingredients = tensorrt_ingredients(
        plan.model, source.digest, precision, most, card, distribution, runtime.__version__
    )
    folder = obtain(
        plan, f"tensorrt-{fingerprint(ingredients)}", ConversionJob(plan.model, "tensorrt", precision, most)
    )
    info = info_of(source, read_facts(folder), plan.choice, precision, lanes, 1, most, folder.name)
    libraries = {distribution: version(distribution), "tensorrt": str(runtime.__version__), "driver": card.driver}
    info = info.model_copy(update={"versions": info.versions | libraries, "mixes": _mixes(info)})
    plan.progress(f"loading the TensorRT engines of {source.name} onto {card.name}")
    try:
        engine = DeviceEngine(TensorRTGraphs(folder, info, runtime), info, spec.cuda_graphs)
        return gated(engine, read_reference(folder), plan, (1, most))
    except EngineError as error:
        raise TensorRTError(str(error)) from error


def _build_torch(plan: BuildContext) -> Engine:
    from model.engines.cuda.engine import DeviceEngine
    from model.engines.cuda.torch_graphs import TorchGraphs
    from model.engines.eager import EagerEngine

    spec, source = plan.spec, plan.source
    plan.progress(f"loading {source.name} into torch")
    checkpoint, facts = load_model(plan.model)
    on_gpu = plan.choice.device == "cuda"
    auto: Precision = "fp16" if on_gpu else "fp32"
    precision = auto if spec.precision == "auto" else spec.precision
    reference = parity.answers(reference_engine(checkpoint, facts))  # first: both set torch's number of threads
    if on_gpu:
        most = spec.max_batch or GPU_BATCH
        info = info_of(source, facts, plan.choice, precision, spec.lanes or GPU_LANES, 1, most)
        info = info.model_copy(update={"mixes": _mixes(info)})
        try:
            engine = DeviceEngine(TorchGraphs(checkpoint, info), info, spec.cuda_graphs)
            return gated(engine, reference, plan, (1, most))
        except EngineError as error:
            raise EngineBuildError(str(error)) from error
    lanes = spec.lanes or 1
    threads = max(1, available_cpus() // lanes)
    info = info_of(source, facts, plan.choice, precision, lanes, threads, spec.max_batch or EAGER_BATCH)
    return gated(EagerEngine(checkpoint, info), reference, plan)


def _mixes(info: EngineInfo) -> bool:
    """Whether this engine's batches may hold images with different numbers of visible patches.

    On a GPU small batches cost nearly as much as full ones; on a processor they do not, and there nothing is gained.
    """
    return info.config.family == "vit" and info.preferred_batch > 1
