"""What is to be built, and the steps that every backend shares."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from model.engines import parity
from model.engines.base import Engine, EngineInfo, Precision
from model.engines.cache import EngineCache
from model.engines.choice import Backend, Choice
from model.engines.convert import Job, ModelFacts, ModelSpec, convert_in_child
from model.source import Source

log = logging.getLogger(__name__)


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
    """Photographs to quantise by, for int8 and auto; without it, int8 needs an engine that was made before."""

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


def obtain(plan: Plan, name: str, job: Job) -> Path:
    """The cache's entry of that name, made in a child process if need be."""

    def make(folder: Path) -> None:
        plan.progress(f"making the engine of {plan.source.name} for {job.target}")
        convert_in_child(job, folder, plan.progress)

    folder, was_there = EngineCache(plan.spec.cache).obtain(name, make)
    log.info("engine cache entry %s: %s", folder, "found" if was_there else "made")
    return folder


def gated(engine: Engine, reference: parity.Answers, plan: Plan, sizes: tuple[int | None, ...] = (None,)) -> Engine:
    """`engine`, compared with `reference` in batches of `sizes`, and with the figures in its `info`.

    Raises:
        ParityError: it is below the bar of its precision.
    """
    plan.progress("comparing the engine with eager float32")
    found = parity.gate(engine, reference, plan.spec.bar(engine.info.precision), sizes)
    engine.info = engine.info.model_copy(update={"parity": found})
    return engine


def info_of(
    source: Source,
    facts: ModelFacts,
    choice: Choice,
    precision: Precision,
    lanes: int,
    threads: int,
    batch: int,
    entry: str | None = None,
) -> EngineInfo:
    """What an engine says of itself before it is measured."""
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
        versions=versions(),
        entry=entry,
        fallback=choice.fallback,
    )


def versions() -> dict[str, str]:
    """Of the packages that numbers and speed depend on, as far as they are installed."""
    return {name: version(name) for name in ("mae-serve", "numpy", *filter(find_spec, ("openvino", "torch")))}


def code_digest() -> str:
    """Over the source of the model and of the engines: graphs made by other code are other graphs."""
    engines = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*engines.parent.glob("*.py"), *engines.glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
