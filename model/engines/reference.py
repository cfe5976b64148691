"""Eager float32 on the CPU: what every engine is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from model.checkpoints.locate import Source
from model.config import MAEConfig, Preprocessing
from model.engines.backend import BackendChoice
from model.engines.base import EngineBuildError
from model.engines.context import info_of
from model.engines.cpu import available_cpus
from model.engines.job import LoadedModel, ModelSpec

if TYPE_CHECKING:
    from model.checkpoints.checkpoint import Checkpoint
    from model.engines.eager import EagerEngine


EAGER_BATCH = 8


def load_model(spec: ModelSpec) -> tuple[Checkpoint, LoadedModel]:
    """Reads the checkpoint and applies what the operator says of it.

    Raises:
        WeightsError: the file is not what it should be.
        EngineBuildError: the image size or the preprocessing cannot be.
    """
    from model.checkpoints.checkpoint import load

    checkpoint = load(Path(spec.path), spec.preset, spec.norm_pix_loss)
    config, preprocessing = checkpoint.config, checkpoint.preprocessing
    if spec.image_size is not None:
        with _speaking_of("IMAGE_SIZE"):
            config = MAEConfig(**{**config.model_dump(), "image_size": spec.image_size})
    if spec.preprocess is not None:
        with _speaking_of("PREPROCESS"):
            preprocessing = Preprocessing(**{**preprocessing.model_dump(), **spec.preprocess})
    return checkpoint, LoadedModel(config, preprocessing, checkpoint.layout, checkpoint.license)


def reference_engine(checkpoint: Checkpoint, facts: LoadedModel) -> EagerEngine:
    """Eager float32 on the processor: what every engine is compared with."""
    from model.engines.eager import EagerEngine

    source = Source(Path(), "", facts.config.name, facts.license)
    info = info_of(source, facts, BackendChoice("torch", "cpu"), "fp32", 1, available_cpus(), EAGER_BATCH)
    return EagerEngine(checkpoint, info)


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
