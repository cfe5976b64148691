"""From settings to an engine that has passed the gate."""

from __future__ import annotations

import hashlib
import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from model.config import MAEConfig, Preprocessing
from model.engines import gpu, parity
from model.engines import openvino as openvino_engine
from model.engines.base import Engine, EngineBuildError, EngineError, EngineInfo, Precision, TensorRTError
from model.engines.batch import preferred_batch, warm
from model.engines.cache import EngineCache, fingerprint
from model.engines.calibration import calibration_in
from model.engines.choice import Backend, Choice, choose_backend
from model.engines.convert import Job, ModelFacts, ModelSpec, convert_in_child, read_facts, read_reference
from model.engines.cpu import available_cpus
from model.engines.quantise import read_quantisation, require_nncf
from model.extras import read_extras
from model.source import Source, locate, speaking_of

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint
    from model.engines.eager import EagerEngine

log = logging.getLogger(__name__)
EAGER_BATCH = 8
GPU_BATCH, GPU_LANES = 64, 2
"""Two lanes, so that one's copies overlap the other's computing."""


@dataclass(frozen=True)
class EngineSpec:
    """What the operator asks for; None leaves a choice to us."""

    cache: Path
    weights: str | None = None
    model: str | None = None
    norm_pix_loss: bool | None = None
    image_size: int | None = None
    preprocess: dict[str, Any] | None = None
    backend: Backend = "auto"
    precision: Precision | Literal["auto"] = "auto"
    lanes: int | None = None
    max_batch: int | None = None
    cuda_graphs: bool = False
    parity_cosine: float | None = None
    parity_psnr_db: float | None = None
    parity_loss: float | None = None
    calibrate: Path | None = None
    """Photographs to quantise by; without it, int8 needs an engine that was made before."""

    def bar(self, precision: Precision) -> parity.Bar:
        """What an engine of that precision must reach."""
        return parity.bar_for(precision, self.parity_cosine, self.parity_psnr_db, self.parity_loss)


@dataclass(frozen=True)
class Plan:
    """What is to be built, where, and who is told."""

    spec: EngineSpec
    source: Source
    model: ModelSpec
    choice: Choice
    progress: Callable[[str], None]


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
    model = ModelSpec(str(source.path), spec.model, spec.norm_pix_loss, spec.image_size, spec.preprocess)
    plan = Plan(spec, source, model, _announced(choose_backend(spec.backend)), progress)
    try:
        engine = _build(plan)
    except TensorRTError as error:
        if spec.backend != "auto":
            raise
        choice = _announced(Choice("torch", "cuda", f"TensorRT has failed: {error}"))
        engine = _build(Plan(spec, source, model, choice, progress))
    with speaking_of(source.path):
        engine.extras = extras = read_extras(source.path)
    facts = {"head": extras.head and extras.head.facts, "whitening": tuple(extras.whitening)}
    engine.info = engine.info.model_copy(update=facts)
    return engine


def load_model(spec: ModelSpec) -> tuple[Checkpoint, ModelFacts]:
    """Reads the checkpoint and applies what the operator says of it.

    Raises:
        WeightsError: the file is not what it should be.
        EngineBuildError: the image size or the preprocessing cannot be.
    """
    from model.checkpoint import load

    checkpoint = load(Path(spec.path), spec.preset, spec.norm_pix_loss)
    config, preprocessing = checkpoint.config, checkpoint.preprocessing
    if spec.image_size is not None:
        with _speaking_of("IMAGE_SIZE"):
            config = MAEConfig(**{**config.model_dump(), "image_size": spec.image_size})
    if spec.preprocess is not None:
        with _speaking_of("PREPROCESS"):
            preprocessing = Preprocessing(**{**preprocessing.model_dump(), **spec.preprocess})
    return checkpoint, ModelFacts(config, preprocessing, checkpoint.layout, checkpoint.license)


def reference_engine(checkpoint: Checkpoint, facts: ModelFacts) -> EagerEngine:
    """Eager float32 on the processor: what every engine is compared with."""
    from model.engines.eager import EagerEngine

    source = Source(Path(), "", facts.config.name, facts.license)
    info = _info(source, facts, Choice("torch", "cpu"), "fp32", 1, available_cpus(), EAGER_BATCH)
    return EagerEngine(checkpoint, info)


def tensorrt_ingredients(
    model: ModelSpec, digest: str, precision: Precision, most: int, card: gpu.Gpu, distribution: str, runtime: str
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
        "code": _code_digest(),
        "precision": precision,
        "most": most,
        "gpu": asdict(card),
        "distribution": distribution,
        "versions": {name: version(name) for name in ("torch", distribution)} | {"tensorrt": runtime},
    }


def _announced(choice: Choice) -> Choice:
    if choice.fallback:
        log.warning("serving by %s on %s: %s", choice.backend, choice.device, choice.fallback)
    return choice


def _build(plan: Plan) -> Engine:
    backend = plan.choice.backend
    if plan.spec.precision == "int8" and backend != "openvino":
        raise EngineBuildError(
            f"PRECISION=int8 is for BACKEND=openvino; {backend} on {plan.choice.device} has fp32, bf16 and fp16"
        )
    if plan.spec.calibrate is not None and plan.spec.precision != "int8":
        raise EngineBuildError("photographs to calibrate on are for PRECISION=int8 alone")
    if plan.choice.backend == "openvino":
        return _build_openvino(plan)
    if plan.choice.backend == "tensorrt":
        return _build_tensorrt(plan)
    return _build_torch(plan)


def _build_openvino(plan: Plan) -> Engine:
    spec, source = plan.spec, plan.source
    ingredients = {
        **asdict(plan.model),
        "path": source.digest,
        "code": _code_digest(),
        "versions": {name: version(name) for name in ("openvino", "torch")},
        "machine": platform.machine(),
    }
    precision = "fp32" if spec.precision == "auto" else spec.precision
    if precision == "int8":
        folder = _obtain_int8(plan, ingredients)
    else:
        folder = _obtain(plan, f"openvino-{fingerprint(ingredients)}", Job(plan.model, "openvino"))
    lanes = spec.lanes or available_cpus()
    batch = spec.max_batch or openvino_engine.PREFERRED_BATCH
    threads = max(1, available_cpus() // lanes)
    info = _info(source, read_facts(folder), plan.choice, precision, lanes, threads, batch, folder.name)
    if precision == "int8":
        info = info.model_copy(update={"quantisation": read_quantisation(folder)})
    plan.progress(f"compiling {source.name} for this processor")
    engine = openvino_engine.OpenVINOEngine(folder, info)
    _gated(engine, read_reference(folder), plan)
    if spec.max_batch is None:
        engine.prefer(preferred_batch(engine, EngineCache(spec.cache), plan.progress))
    warm(engine)
    return engine


def _build_tensorrt(plan: Plan) -> Engine:
    from model.engines.device import DeviceEngine
    from model.engines.tensorrt import TensorRTKernels

    spec, source = plan.spec, plan.source
    distribution = gpu.installed_distribution()
    assert distribution is not None, "choose_backend has looked"
    runtime, card = gpu.tensorrt_runtime(distribution), gpu.this_gpu()
    precision = "fp16" if spec.precision == "auto" else spec.precision
    most, lanes = spec.max_batch or GPU_BATCH, spec.lanes or GPU_LANES
    ingredients = tensorrt_ingredients(
        plan.model, source.digest, precision, most, card, distribution, runtime.__version__
    )
    folder = _obtain(plan, f"tensorrt-{fingerprint(ingredients)}", Job(plan.model, "tensorrt", precision, most))
    info = _info(source, read_facts(folder), plan.choice, precision, lanes, 1, most, folder.name)
    libraries = {distribution: version(distribution), "tensorrt": str(runtime.__version__), "driver": card.driver}
    info = info.model_copy(update={"versions": info.versions | libraries, "mixes": _mixes(info)})
    plan.progress(f"loading the TensorRT engines of {source.name} onto {card.name}")
    try:
        engine = DeviceEngine(TensorRTKernels(folder, info, runtime), info, spec.cuda_graphs)
        return _gated(engine, read_reference(folder), plan, (1, most))
    except EngineError as error:
        raise TensorRTError(str(error)) from error


def _build_torch(plan: Plan) -> Engine:
    from model.engines.device import DeviceEngine
    from model.engines.eager import EagerEngine, TorchKernels

    spec, source = plan.spec, plan.source
    plan.progress(f"loading {source.name} into torch")
    checkpoint, facts = load_model(plan.model)
    on_gpu = plan.choice.device == "cuda"
    auto: Precision = "fp16" if on_gpu else "fp32"
    precision = auto if spec.precision == "auto" else spec.precision
    reference = parity.answers(reference_engine(checkpoint, facts))  # first: both set torch's number of threads
    if on_gpu:
        most = spec.max_batch or GPU_BATCH
        info = _info(source, facts, plan.choice, precision, spec.lanes or GPU_LANES, 1, most)
        info = info.model_copy(update={"mixes": _mixes(info)})
        try:
            engine = DeviceEngine(TorchKernels(checkpoint, info), info, spec.cuda_graphs)
            return _gated(engine, reference, plan, (1, most))
        except EngineError as error:
            raise EngineBuildError(str(error)) from error
    lanes = spec.lanes or 1
    threads = max(1, available_cpus() // lanes)
    info = _info(source, facts, plan.choice, precision, lanes, threads, spec.max_batch or EAGER_BATCH)
    return _gated(EagerEngine(checkpoint, info), reference, plan)


def _obtain(plan: Plan, name: str, job: Job) -> Path:
    """The cache's entry of that name, made in a child process if need be."""

    def make(folder: Path) -> None:
        plan.progress(f"making the engine of {plan.source.name} for {job.target}")
        convert_in_child(job, folder, plan.progress)

    folder, was_there = EngineCache(plan.spec.cache).obtain(name, make)
    log.info("engine cache entry %s: %s", folder, "found" if was_there else "made")
    return folder


def _obtain_int8(plan: Plan, ingredients: dict[str, object]) -> Path:
    """The quantised entry: made from `spec.calibrate`, or the one that was made last from whatever photographs.

    A note in the cache leads from all ingredients but the photographs to that entry: a server has not got them.
    """
    spec, cache = plan.spec, EngineCache(plan.spec.cache)
    note = f"int8-{fingerprint(ingredients)}"
    if spec.calibrate is None:
        said = cache.read_note(note)
        found = cache.find(str(said["entry"])) if said and "entry" in said else None
        if found is None:
            raise EngineBuildError(
                f"the engine cache {spec.cache} has no intact int8 engine of {plan.source.name} for these options: "
                "mae compile --precision int8 --calibrate FOLDER makes one from photographs"
            )
        _held_out_gate(found, plan)
        return found
    nncf, calibration = require_nncf(), calibration_in(spec.calibrate)
    name = f"openvino-int8-{fingerprint({**ingredients, 'photographs': calibration.digest, 'nncf': nncf})}"
    folder = _obtain(plan, name, Job(plan.model, "openvino", "int8", photographs=calibration))
    _held_out_gate(folder, plan)
    cache.write_note(note, {"entry": name})
    return folder


def _held_out_gate(folder: Path, plan: Plan) -> None:
    parity.require(read_quantisation(folder).parity, plan.spec.bar("int8"), " of photographs held out")


@contextmanager
def _speaking_of(setting: str) -> Iterator[None]:
    """Makes what pydantic refuses an EngineBuildError that names the setting."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([setting, *map(str, first["loc"])])
        message = first["msg"].removeprefix("Value error, ")
        raise EngineBuildError(f"the model cannot be served like this: {where}: {message}") from error


def _gated(engine: Engine, reference: parity.Answers, plan: Plan, sizes: tuple[int | None, ...] = (None,)) -> Engine:
    plan.progress("comparing the engine with eager float32")
    found = parity.gate(engine, reference, plan.spec.bar(engine.info.precision), sizes)
    engine.info = engine.info.model_copy(update={"parity": found})
    return engine


def _info(
    source: Source,
    facts: ModelFacts,
    choice: Choice,
    precision: Precision,
    lanes: int,
    threads: int,
    batch: int,
    entry: str | None = None,
) -> EngineInfo:
    return EngineInfo(
        backend=choice.backend,
        precision=precision,
        device=choice.device,
        model=source.name,
        weights=source.digest,
        layout=facts.layout,
        license=facts.license or source.license,
        config=facts.config,
        preprocessing=facts.preprocessing,
        lanes=lanes,
        threads_per_lane=threads,
        preferred_batch=batch,
        versions={name: version(name) for name in ("mae-serve", "numpy", *filter(find_spec, ("openvino", "torch")))},
        entry=entry,
        fallback=choice.fallback,
    )


def _mixes(info: EngineInfo) -> bool:
    """Whether this engine's batches may hold images with different numbers of visible patches.

    On a GPU small batches cost nearly as much as full ones; on a processor they do not, and there nothing is gained.
    """
    return info.config.family == "vit" and info.preferred_batch > 1


def _code_digest() -> str:
    """Over the source of the model and of the engines: graphs made by other code are other graphs."""
    engines = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*engines.parent.glob("*.py"), *engines.glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
