"""The context of a build, and the steps that the builders of all backends share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from model.checkpoints.heads import Heads
from model.checkpoints.locate import Source
from model.engines.base import BackendChoice, ComputedPrecision, Engine, EngineInfo, Precision
from model.engines.cache import EngineCache
from model.engines.child import convert_in_child
from model.engines.job import ConversionJob, LoadedModel, ModelSpec
from model.engines.outputs import EngineOutputs
from model.engines.parity import Tolerance, check_parity, tolerance_for
from model.engines.settings import EngineSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildContext:
    """The settings, the weights and the backend of an engine that is to be built."""

    settings: EngineSettings
    source: Source
    heads: Heads
    model: ModelSpec
    choice: BackendChoice
    calibrate: Path | None
    """The operator's folder of photographs to make an int8 engine from; None in a server, which takes no folder."""
    progress: Callable[[str], None]
    """Called with a sentence at every step."""

    def obtain_entry(
        self,
        name: str,
        job: ConversionJob,
        deadline: float | None = None,
        unpack: Callable[[Path], bool] | None = None,
    ) -> Path:
        """Returns the folder of the cache's entry `name`; if it is missing, unpacks it or has a child process make it.

        Args:
            name: the name of the entry.
            job: the conversion that makes it.
            deadline: the time (of `time.monotonic`) at which the child process is ended; None for no limit.
            unpack: fills a folder with the entry if the package has it, and returns whether it has.

        Raises:
            BuildTimeout: the deadline has passed.
        """

        def make(folder: Path) -> None:
            if unpack is not None and unpack(folder):
                self.progress(f"making the engine of {self.source.name} from the graphs in the package")
                return
            self.progress(f"making the engine of {self.source.name} for {job.target}")
            convert_in_child(job, folder, self.progress, deadline)

        folder, existed = EngineCache(self.settings.engine_cache).obtain(name, make)
        log.info("engine cache entry %s: %s", folder, "found" if existed else "made")
        return folder

    def describe(
        self,
        model: LoadedModel,
        precision: Precision,
        *,
        lanes: int,
        threads_per_lane: int,
        max_batch_size: int,
        libraries: dict[str, str] | None = None,
        **more: Any,
    ) -> EngineInfo:
        """The info of an engine before its parity is measured.

        Args:
            model: the model's properties.
            precision: the engine's precision; an engine that computes in another one corrects `computes` itself.
            lanes: number of batches that may run at once.
            threads_per_lane: number of CPU threads of each lane.
            max_batch_size: the largest, or preferred, batch size of a lane.
            libraries: versions to add to those that every engine has.
            more: further fields of `EngineInfo`.
        """
        head = self.heads.head or model.head
        return EngineInfo(
            backend=self.choice.backend,
            precision=precision,
            computes=precision,
            device=self.choice.device,
            model=self.source.name,
            weights=self.source.digest,
            layout=model.layout,
            license=model.license or self.source.license,
            config=model.config,
            preprocessing=model.preprocessing,
            lanes=lanes,
            threads_per_lane=threads_per_lane,
            preferred_batch=max_batch_size,
            versions=installed_versions() | (libraries or {}),
            notes=model.notes,
            head=head and head.config,
            whitening=tuple(self.heads.whitening),
            memory_bank=self.heads.memory_bank and self.heads.memory_bank.info,
            fallback=self.choice.fallback,
            **more,
        )

    def tolerance(self, computes: ComputedPrecision) -> Tolerance:
        """How far an engine that computes in `computes` may lie from eager float32."""
        s = self.settings
        return tolerance_for(computes, s.parity_cosine, s.parity_psnr_db, s.parity_loss)

    def check(self, engine: Engine, reference: EngineOutputs, batch_sizes: tuple[int | None, ...] = (None,)) -> None:
        """Compares `engine` with the reference outputs in batches of `batch_sizes`, and puts the figures into its info.

        Raises:
            ParityError: the engine is outside the tolerance of the precision that it computes in.
        """
        self.progress("comparing the engine with eager float32")
        parity = check_parity(engine, reference, self.tolerance(engine.info.computes), batch_sizes)
        engine.info = engine.info.model_copy(update={"parity": parity})


def installed_versions() -> dict[str, str]:
    """Versions of the installed packages that numbers and speed depend on."""
    return {name: version(name) for name in ("mae-serve", "numpy", *filter(find_spec, ("openvino", "torch")))}
