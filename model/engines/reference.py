"""The reference that every engine is compared with: eager float32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from model.checkpoints.checkpoint import IMAGENET, Checkpoint, load
from model.config import MAEConfig, Preprocessing
from model.engines.base import EngineBuildError, EngineInfo, Precision
from model.engines.eager import EagerEngine
from model.engines.job import LoadedModel, ModelSpec
from model.engines.pixel_target import doubt_target

EAGER_BATCH = 8


def load_model(spec: ModelSpec) -> tuple[Checkpoint, LoadedModel]:
    """Reads the checkpoint, and applies the operator's options.

    Raises:
        WeightsError: the weights are missing, foreign or damaged, or are not the preset.
        EngineBuildError: the model cannot have this image size or this preprocessing.
    """
    checkpoint = load(Path(spec.path), spec.preset, spec.norm_pix_loss, spec.heads)
    config, preprocessing = checkpoint.config, checkpoint.preprocessing
    if spec.image_size is not None:
        with _name_setting("IMAGE_SIZE"):
            config = MAEConfig(**{**config.model_dump(), "image_size": spec.image_size})
    if spec.preprocess is not None:
        with _name_setting("PREPROCESS"):
            preprocessing = Preprocessing(**{**preprocessing.model_dump(), **spec.preprocess})
    notes = [note for note in checkpoint.notes if not (spec.preprocess and note.endswith(IMAGENET))]
    head = checkpoint.heads.head
    loaded = LoadedModel(config, preprocessing, checkpoint.layout, checkpoint.license, tuple(notes), head)
    if not checkpoint.target_is_known and (doubt := doubt_target(reference_engine(checkpoint, loaded))):
        loaded = replace(loaded, notes=(*loaded.notes, doubt))
    return checkpoint, loaded


def reference_engine(checkpoint: Checkpoint, model: LoadedModel) -> EagerEngine:
    """The reference engine of a model: one lane, with as many threads as torch is set to."""
    return EagerEngine(checkpoint, describe_torch_engine(model))


def describe_torch_engine(
    model: LoadedModel, precision: Precision = "fp32", device: str = "cpu", max_batch_size: int = EAGER_BATCH
) -> EngineInfo:
    """The info of an engine by torch that serves nobody: one lane, and no weights' name."""
    return EngineInfo(
        backend="torch",
        precision=precision,
        computes=precision,
        device=device,
        model=model.config.name,
        weights="",
        layout=model.layout,
        license=model.license,
        config=model.config,
        preprocessing=model.preprocessing,
        lanes=1,
        threads_per_lane=1,
        preferred_batch=max_batch_size,
        versions={},
    )


@contextmanager
def _name_setting(setting: str) -> Iterator[None]:
    """Turns a refusal by pydantic into an EngineBuildError that names the setting."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join([setting, *map(str, first["loc"])])
        message = first["msg"].removeprefix("Value error, ")
        raise EngineBuildError(f"the model cannot be served like this: {name}: {message}") from error
