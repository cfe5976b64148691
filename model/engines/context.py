"""What is to be built, and the steps that every backend shares."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from model.checkpoints.locate import Source
from model.engines import parity
from model.engines.backend import BackendChoice
from model.engines.base import Engine, EngineInfo, Precision
from model.engines.cache import EngineCache
from model.engines.child import convert_in_child
from model.engines.job import ConversionJob, LoadedModel, ModelSpec
from model.engines.spec import EngineSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildContext:
    """What is to be built, where, and who is told."""

    spec: EngineSpec
    source: Source
    model: ModelSpec
    choice: BackendChoice
    progress: Callable[[str], None]


def obtain(plan: BuildContext, name: str, job: ConversionJob) -> Path:
    """The cache's entry of that name, made in a child process if need be."""

    def make(folder: Path) -> None:
        plan.progress(f"making the engine of {plan.source.name} for {job.target}")
        convert_in_child(job, folder, plan.progress)

    folder, was_there = EngineCache(plan.spec.cache).obtain(name, make)
    log.info("engine cache entry %s: %s", folder, "found" if was_there else "made")
    return folder


def gated(
    engine: Engine, reference: parity.ReferenceOutputs, plan: BuildContext, sizes: tuple[int | None, ...] = (None,)
) -> Engine:
    """`engine`, compared with `reference` in batches of `sizes`, and with the figures in its `info`.

    Raises:
        ParityError: it is below the bar of its precision.
    """
    plan.progress("comparing the engine with eager float32")
    found = parity.check_parity(engine, reference, plan.spec.bar(engine.info.computes), sizes)
    engine.info = engine.info.model_copy(update={"parity": found})
    return engine


def info_of(
    source: Source,
    facts: LoadedModel,
    choice: BackendChoice,
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
        computes=precision,
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
