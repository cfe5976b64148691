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
from model.engines import openvino as openvino_engine
from model.engines import parity
from model.engines.base import Engine, EngineBuildError, EngineInfo, Precision
from model.engines.cache import EngineCache, fingerprint
from model.engines.convert import ModelFacts, ModelSpec, convert_in_child, read_facts, read_reference
from model.engines.cpu import available_cpus
from model.extras import read_extras
from model.source import Source, locate, speaking_of

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint
    from model.engines.eager import EagerEngine

log = logging.getLogger(__name__)
Backend = Literal["auto", "openvino", "torch"]
EAGER_BATCH = 8
NVIDIA_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


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


def build(spec: EngineSpec, progress: Callable[[str], None] = log.info) -> Engine:
    """Loads or makes the engine, warms it up and compares it with eager float32.

    Args:
        spec: what to build.
        progress: told in words what is being done.

    Raises:
        WeightsError: the weights are missing, foreign or damaged.
        EngineBuildError: the engine cannot be made.
        ParityError: it can, but it does not compute what the model computes.
    """
    source = locate(spec.weights, spec.model)
    backend, device, fallback = choose_backend(spec.backend)
    if fallback:
        log.warning("serving by %s on %s: %s", backend, device, fallback)
    model = ModelSpec(str(source.path), spec.model, spec.norm_pix_loss, spec.image_size, spec.preprocess)
    make = _build_openvino if backend == "openvino" else _build_eager
    engine = make(spec, source, model, device, fallback, progress)
    with speaking_of(source.path):
        engine.extras = extras = read_extras(source.path)
    facts = {"head": extras.head and extras.head.facts, "whitening": tuple(extras.whitening)}
    engine.info = engine.info.model_copy(update=facts)
    return engine


def choose_backend(wanted: Backend) -> tuple[Literal["openvino", "torch"], str, str | None]:
    """Backend, device, and why it is not the preferred one (None if it is).

    torch is imported only where there is an NVIDIA device, or nothing but torch to serve with.
    """
    if wanted == "openvino":
        if not find_spec("openvino"):
            raise EngineBuildError("BACKEND=openvino, but the package openvino is not installed")
        return "openvino", "cpu", None
    nvidia = any(path.exists() for path in NVIDIA_DEVICES)
    if nvidia and _cuda_works():
        return "torch", "cuda", None
    idle = "there is an NVIDIA device, but torch cannot use it" if nvidia else None
    if wanted == "torch":
        return "torch", "cpu", idle
    if find_spec("openvino"):
        return "openvino", "cpu", idle
    return "torch", "cpu", "the package openvino is not installed"


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
    return EagerEngine(checkpoint, _info(source, facts, "torch", "fp32", "cpu", 1, available_cpus(), EAGER_BATCH))


def _build_openvino(
    spec: EngineSpec,
    source: Source,
    model: ModelSpec,
    device: str,
    fallback: str | None,
    progress: Callable[[str], None],
) -> Engine:
    def convert(folder: Path) -> None:
        progress(f"converting {source.name} for OpenVINO")
        convert_in_child(model, folder)

    ingredients = {
        **asdict(model),
        "path": source.digest,
        "code": _code_digest(),
        "versions": {name: version(name) for name in ("openvino", "torch")},
        "machine": platform.machine(),
    }
    folder, _ = EngineCache(spec.cache).obtain(f"openvino-{fingerprint(ingredients)}", convert)
    facts = read_facts(folder)
    lanes = spec.lanes or available_cpus()
    threads = max(1, available_cpus() // lanes)
    batch = spec.max_batch or openvino_engine.PREFERRED_BATCH
    precision = "fp32" if spec.precision == "auto" else spec.precision
    info = _info(source, facts, "openvino", precision, device, lanes, threads, batch, fallback)
    progress(f"compiling {source.name} for this processor")
    engine = openvino_engine.OpenVINOEngine(folder, info)
    return _gated(engine, read_reference(folder), progress)


def _build_eager(
    spec: EngineSpec,
    source: Source,
    model: ModelSpec,
    device: str,
    fallback: str | None,
    progress: Callable[[str], None],
) -> Engine:
    from model.engines.eager import EagerEngine

    progress(f"loading {source.name} into torch")
    checkpoint, facts = load_model(model)
    auto: Precision = "fp16" if device == "cuda" else "fp32"
    lanes = spec.lanes or 1
    info = _info(
        source,
        facts,
        "torch",
        auto if spec.precision == "auto" else spec.precision,
        device,
        lanes,
        max(1, available_cpus() // lanes),
        spec.max_batch or EAGER_BATCH,
        fallback,
    )
    reference = parity.answers(reference_engine(checkpoint, facts))  # first: both set torch's number of threads
    return _gated(EagerEngine(checkpoint, info), reference, progress)


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


def _gated(engine: Engine, reference: parity.Answers, progress: Callable[[str], None]) -> Engine:
    progress("comparing the engine with eager float32")
    info = engine.info
    found = parity.check(parity.answers(engine), reference, info.config, info.precision)
    engine.info = info.model_copy(update={"parity": found})
    return engine


def _info(
    source: Source,
    facts: ModelFacts,
    backend: Literal["openvino", "torch"],
    precision: Precision,
    device: str,
    lanes: int,
    threads: int,
    batch: int,
    fallback: str | None = None,
) -> EngineInfo:
    return EngineInfo(
        backend=backend,
        precision=precision,
        device=device,
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
        fallback=fallback,
    )


def _cuda_works() -> bool:
    import torch

    return torch.cuda.is_available()


def _code_digest() -> str:
    """Over the model's own source: graphs made by other code are other graphs."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
